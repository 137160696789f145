#include "fma_loop.h"

#include "tile.h"

namespace swk::SWK_ISA {

// One chain per accumulator of a tile (tile.h): 24 with 32 registers, 12 with 16. Two multiply-add units with a latency
// of four cycles, the most in current cores, need 8 chains.
void fma_loop(const FmaLoopArgs& args) {
    constexpr int kChains = kTileRows * kPanelVectors;
    const F32 factor = broadcast(args.factor), addend = broadcast(args.addend);
    F32 chain[kChains];
    for (int i = 0; i < kChains; ++i) chain[i] = broadcast(static_cast<float>(i));
    for (int64_t round = 0; round < args.rounds; ++round) {
#pragma GCC unroll 24
        for (int i = 0; i < kChains; ++i) chain[i] = madd(chain[i], factor, addend);
    }
    F32 sum{};
    for (int i = 0; i < kChains; ++i) sum += chain[i];
    *args.result = sum[0];
    *args.operations = 2 * kChains * kLanes;
}

}  // namespace swk::SWK_ISA
