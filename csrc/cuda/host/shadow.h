// Shadow memory: who last wrote and read each two bytes of shared memory and of the launch's buffers, and after which
// barriers. The rules, none of which depends on the order in which the fibers ran:
//   - Two accesses by different threads of a block, one of them a write, need a block_sync between them, or a warp_sync if
//     the threads are of one warp. Shuffles, ldmatrix and mma order nothing. Two atomic accesses need no order.
//   - Such accesses by different blocks are wrong whatever is between them.
//   - Between copy_async16 and the copy_wait of the thread that called it nobody touches the destination; after that, the
//     copy is a write of that thread.
//   - Shared memory and outputs are read after a write; inputs are not written; nothing else is touched at all.
//   - An address is a multiple of the bytes moved.
#pragma once
#include <cstddef>
#include <cstdint>

#include "report.h"

namespace gpu::host {

// There is a kernel in this library whose accesses are seen. Without, only the operations of ../gpu.h are checked, and they
// for their bounds.
void hooks_are_called();

constexpr size_t kZone = 4096;  // bytes before and after each memory that belong to nobody

enum class Access : int32_t { input, output, both };

// Tell AddressSanitizer, if it is loaded, that bytes belong to nobody, or to somebody again.
void poison(const void* data, size_t bytes);
void unpoison(const void* data, size_t bytes);

void forget_buffers();
// `data`: with kZone bytes before and after it.
void add_buffer(const void* data, size_t bytes, const char* name, Access access);
// The memory of the kernel's arguments.
void set_arguments(const void* data, size_t bytes);
void shadow_of_shared_memory(const void* data, size_t bytes);

// An access by the thread that runs. May not return (block.h, stop).
void touch(const void* address, size_t bytes, Touch how, const void* pc);
// One that must be of shared memory and aligned to its size; this much is checked even where `check` is off.
void touch_shared(const void* address, size_t bytes, Touch how, const void* pc);

// Whether it belongs to the kernel's arguments, to constants or to this library: on a GPU no memory traffic.
bool is_private(const void* address);

void begin_copy(const void* to, size_t bytes);  // after touch_shared
void end_copy(const void* to, size_t bytes, const void* pc);

}  // namespace gpu::host
