// See fiber.h.
#include "fiber.h"

#include <sys/mman.h>

#include <new>

namespace gpu::host {

void Stacks::reserve(int count) {
    if (count <= held) return;
    if (memory != nullptr) munmap(memory, bytes());
    held = count;
    void* found = mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) throw std::bad_alloc();
    memory = static_cast<unsigned char*>(found);
    for (int i = 0; i < held; ++i) mprotect(bottom(i), kPage, PROT_NONE);
}

#if defined(SWK_UCONTEXT)

void prepare(Context& context, unsigned char* stack, size_t bytes, void (*function)()) {
    getcontext(&context.state);
    context.state.uc_stack.ss_sp = stack;
    context.state.uc_stack.ss_size = bytes;
    context.state.uc_link = nullptr;
    makecontext(&context.state, function, 0);
}
void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

#else

// What a called function must keep (System V ABI): rbx, rbp, r12 to r15, and the stack pointer.
extern "C" void swk_switch_stack(void** from, void* to);
asm(R"(
.text
.hidden swk_switch_stack
.globl swk_switch_stack
.type swk_switch_stack, @function
swk_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size swk_switch_stack, . - swk_switch_stack
)");

void prepare(Context& context, unsigned char* stack, size_t bytes, void (*function)()) {
    auto** top = reinterpret_cast<void**>(stack + bytes);
    *--top = nullptr;  // the return address that `function` sees; rsp + 8 is then a multiple of 16, as the ABI has it
    *--top = reinterpret_cast<void*>(function);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    context.stack_pointer = top;
}
void switch_context(Context& from, Context& to) { swk_switch_stack(&from.stack_pointer, to.stack_pointer); }

#endif

}  // namespace gpu::host
