// What GCC calls for each load and store of a file compiled with -fsanitize=thread. Linked in place of its own library, so
// that a kernel's accesses are seen without a change of its source.
#include "block.h"
#include "shadow.h"
#include "traffic.h"

using gpu::host::Touch;

namespace {
void hook(const void* address, size_t bytes, Touch how, const void* pc) {
    if (gpu::host::running_block.options.count) gpu::host::count_access(address, bytes, pc);
    gpu::host::touch(address, bytes, how, pc);
}
}  // namespace

extern "C" {
#define SWK_HOOK(name, bytes, how) \
    void __tsan_##name##bytes(void* address) { hook(address, bytes, Touch::how, __builtin_return_address(0)); }
#define SWK_HOOKS(bytes)                  \
    SWK_HOOK(read, bytes, read)           \
    SWK_HOOK(write, bytes, write)         \
    SWK_HOOK(unaligned_read, bytes, read) \
    SWK_HOOK(unaligned_write, bytes, write) \
    SWK_HOOK(volatile_read, bytes, read)  \
    SWK_HOOK(volatile_write, bytes, write) \
    SWK_HOOK(unaligned_volatile_read, bytes, read) \
    SWK_HOOK(unaligned_volatile_write, bytes, write)
SWK_HOOKS(1)
SWK_HOOKS(2)
SWK_HOOKS(4)
SWK_HOOKS(8)
SWK_HOOKS(16)

// Of structs: seen as accesses of 4 bytes, which is how a GPU moves what has no width of its own.
static void hook_range(const void* address, size_t bytes, Touch how, const void* pc) {
    const auto* from = static_cast<const char*>(address);
    const size_t step = reinterpret_cast<uintptr_t>(address) % 4 == 0 && bytes % 4 == 0 ? 4 : 1;
    for (size_t i = 0; i < bytes; i += step) hook(from + i, step, how, pc);
}
void __tsan_read_range(void* address, size_t bytes) {
    hook_range(address, bytes, Touch::read, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
    hook_range(address, bytes, Touch::write, __builtin_return_address(0));
}
void __tsan_init() { gpu::host::hooks_are_called(); }  // when the library is loaded
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
