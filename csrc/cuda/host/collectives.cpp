// The operations of a warp: shuffles, matrices from shared memory, products of matrices. Layouts: ../gpu.h.
#include <cstring>

#include "block.h"
#include "shadow.h"
#include "traffic.h"

namespace gpu::host {
namespace {

void shuffle(const Part* const* parts) {
    float v[32];
    for (int i = 0; i < 32; ++i) v[i] = *static_cast<const float*>(parts[i]->a);
    for (int i = 0; i < 32; ++i) *static_cast<float*>(parts[i]->result) = v[(i ^ parts[i]->size) & 31];
}

void ldmatrix(const Part* const* parts, int first, bool transposed) {
    const int self = running_block.running;
    for (int m = 0; m < parts[0]->size; ++m) {
        uint16_t rows[8][8];
        const void* from[8];
        for (int i = 0; i < 8; ++i) from[i] = parts[8 * m + i]->a;
        count_request(from, 8, 16, parts[0]->pc);
        for (int i = 0; i < 8; ++i) {
            running_block.running = first + 8 * m + i;
            touch_shared(from[i], 16, Touch::read, parts[8 * m + i]->pc);
            std::memcpy(rows[i], from[i], 16);
        }
        running_block.running = self;
        for (int lane = 0; lane < 32; ++lane) {
            const int g = lane >> 2, t = lane & 3;
            const uint32_t low = transposed ? rows[2 * t][g] : rows[g][2 * t];
            const uint32_t high = transposed ? rows[2 * t + 1][g] : rows[g][2 * t + 1];
            static_cast<uint32_t*>(parts[lane]->result)[m] = low | high << 16;
        }
    }
}

template <typename T>
void mma(const Part* const* parts) {
    const int depth = parts[0]->size;
    float a[16][16], b[16][8], c[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        const int g = lane >> 2, t = lane & 3;
        const auto* pairs_a = static_cast<const uint32_t*>(parts[lane]->a);
        const auto* pairs_b = static_cast<const uint32_t*>(parts[lane]->b);
        const auto* sums = static_cast<const float*>(parts[lane]->result);
        for (int i = 0; i < depth / 4; ++i) {  // register i: rows g and g + 8 in turn, then the next eight columns
            const int row = g + i % 2 * 8, k = 2 * t + i / 2 * 8;
            a[row][k] = low<T>(pairs_a[i]), a[row][k + 1] = high<T>(pairs_a[i]);
        }
        for (int i = 0; i < depth / 8; ++i)
            b[2 * t + 8 * i][g] = low<T>(pairs_b[i]), b[2 * t + 8 * i + 1][g] = high<T>(pairs_b[i]);
        for (int i = 0; i < 4; ++i) c[g + i / 2 * 8][2 * t + i % 2] = sums[i];
    }
    for (int row = 0; row < 16; ++row)
        for (int k = 0; k < depth; ++k)
            for (int column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
    for (int lane = 0; lane < 32; ++lane) {
        const int g = lane >> 2, t = lane & 3;
        auto* sums = static_cast<float*>(parts[lane]->result);
        for (int i = 0; i < 4; ++i) sums[i] = c[g + i / 2 * 8][2 * t + i % 2];
    }
}

}  // namespace

void perform(const Part* const* parts, int first) {
    switch (parts[0]->operation) {
        case Operation::shuffle: return shuffle(parts);
        case Operation::ldmatrix: return ldmatrix(parts, first, false);
        case Operation::ldmatrix_trans: return ldmatrix(parts, first, true);
        case Operation::mma_bfloat16: return mma<BFloat16>(parts);
        case Operation::mma_float16: return mma<Float16>(parts);
        case Operation::warp_sync:
            for (int i = 0; i < 32; ++i) ++running_block.fibers[first + i].warp_syncs;
            return;
    }
}

}  // namespace gpu::host
