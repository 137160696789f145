#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

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

// What the compiler flags of each build in CMakeLists.txt assume. __builtin_cpu_supports also asks whether the
// operating system saves the registers.
#if defined(__x86_64__)
bool runs_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}
bool runs_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
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
bool runs_avx512bf16() { return runs_avx512() && __builtin_cpu_supports("avx512bf16"); }
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
