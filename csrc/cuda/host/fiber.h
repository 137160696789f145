// Fibers: stacks of their own, between which one operating-system thread switches. Assembly on x86-64 (20 ns a switch
// less than ucontext, which also calls the kernel); ucontext elsewhere, and with SWK_UCONTEXT defined.
#pragma once
#include <cstddef>

#if !defined(__x86_64__) && !defined(SWK_UCONTEXT)
#define SWK_UCONTEXT
#endif
#if defined(SWK_UCONTEXT)
#include <ucontext.h>
#endif

namespace gpu::host {

struct Context {
#if defined(SWK_UCONTEXT)
    ucontext_t state;
#else
    void* stack_pointer = nullptr;
#endif
};

// Stacks side by side, each with a page that may not be touched below it. Kept for the next block.
class Stacks {
public:
    void reserve(int count);
    unsigned char* begin() const { return memory; }
    size_t bytes() const { return size_t(held) * kBytes; }
    unsigned char* bottom(int i) const { return memory + size_t(i) * kBytes; }
    static constexpr size_t kBytes = 256 << 10, kPage = 4096;

private:
    unsigned char* memory = nullptr;
    int held = 0;
};

void prepare(Context& context, unsigned char* stack, size_t bytes, void (*function)());  // which must not return
void switch_context(Context& from, Context& to);

}  // namespace gpu::host
