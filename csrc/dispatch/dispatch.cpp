#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "isas.h"  // SWK_FOR_EACH_ISA, written by CMakeLists.txt, the one list of instruction sets

namespace swk {

#define SWK_DECLARE_OP(op, Args) void op(const Args&);
#define SWK_DECLARE_ISA(isa) \
    namespace isa {          \
    SWK_FOR_EACH_OP(SWK_DECLARE_OP) \
    }
SWK_FOR_EACH_ISA(SWK_DECLARE_ISA)

#if defined(SWK_HAS_BFLOAT16)
namespace avx512bf16 {
SWK_FOR_EACH_BFLOAT16_OP(SWK_DECLARE_OP)
}
#endif

namespace {

#if defined(__x86_64__)
// What the compiler flags of each build in CMakeLists.txt assume. The CPU is asked here and not with
// __builtin_cpu_supports, whose table stays empty in extensions that are built against an older glibc (`make wheel`).
struct Cpu {
    bool avx2 = false, avx512 = false, bfloat16 = false;

    Cpu() {
        unsigned eax, ebx, ecx, edx;
        if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return;
        const bool fma = ecx >> 12 & 1, saves_state = ecx >> 27 & 1;
        if (!saves_state) return;
        unsigned saved, upper;  // which registers the operating system saves
        __asm__("xgetbv" : "=a"(saved), "=d"(upper) : "c"(0));
        const bool ymm = (saved & 0x06) == 0x06, zmm = (saved & 0xe6) == 0xe6;
        if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return;
        avx2 = ymm && fma && (ebx >> 5 & 1);
        const unsigned f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
        avx512 = avx2 && zmm && (ebx & f_dq_bw_vl) == f_dq_bw_vl;
        const unsigned subleaves = eax;
        if (subleaves < 1 || !__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) return;
        bfloat16 = avx512 && (eax >> 5 & 1);
    }
};

const Cpu& cpu() {
    static const Cpu found;
    return found;
}

bool runs_avx512() { return cpu().avx512; }
bool runs_avx2() { return cpu().avx2; }
#elif defined(__aarch64__)
bool runs_neon() { return true; }
#endif
bool runs_portable() { return true; }

struct Build {
    bool (*runs)();
    Kernels kernels;
};

#define SWK_KERNELS_avx512(op, Args) , &avx512::op
#define SWK_KERNELS_avx2(op, Args) , &avx2::op
#define SWK_KERNELS_neon(op, Args) , &neon::op
#define SWK_KERNELS_portable(op, Args) , &portable::op
#define SWK_BUILD(isa) Build{&runs_##isa, Kernels{#isa, false SWK_FOR_EACH_OP(SWK_KERNELS_##isa)}},

#if defined(SWK_HAS_BFLOAT16)
bool runs_avx512bf16() { return cpu().bfloat16; }
#define SWK_KERNELS_avx512bf16(op, Args) , &avx512bf16::op
// AVX-512 in everything else.
#define SWK_BUILD_BFLOAT16                                                             \
    Build{&runs_avx512bf16, Kernels{"avx512bf16", true SWK_FOR_EACH_BFLOAT16_OP(SWK_KERNELS_avx512bf16) \
                                        SWK_FOR_EACH_FLOAT32_OP(SWK_KERNELS_avx512)}},
#else
#define SWK_BUILD_BFLOAT16
#endif

const Build kBuilds[] = {SWK_BUILD_BFLOAT16 SWK_FOR_EACH_ISA(SWK_BUILD)};

const Kernels& find(const std::string& isa, const char* who) {
    std::string supported;
    for (const Build& build : kBuilds) {
        if (!build.runs()) continue;
        if (isa == build.kernels.isa) return build.kernels;
        supported += (supported.empty() ? "" : ", ") + std::string(build.kernels.isa);
    }
    throw std::invalid_argument(std::string(who) + " names the instruction set '" + isa + "'; this machine runs " +
                                supported);
}

const Kernels& choose() {
    if (const char* forced = std::getenv("SWINTORMER_ISA"); forced && *forced) return find(forced, "SWINTORMER_ISA");
    for (const Build& build : kBuilds) {
        if (build.runs()) return build.kernels;
    }
    throw std::logic_error("the portable build runs everywhere");
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& kernels() {
    const Kernels* now = chosen.load(std::memory_order_acquire);
    if (!now) chosen.store(now = &choose(), std::memory_order_release);
    return *now;
}

void use_isa(const std::string& isa) { chosen.store(&find(isa, "use_isa"), std::memory_order_release); }

std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (const Build& build : kBuilds) {
        if (build.runs()) names.emplace_back(build.kernels.isa);
    }
    return names;
}

}  // namespace swk
