#include "pack.h"

#include <cstring>

namespace swk {
namespace {

uint32_t rounded(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (value != value) return bits >> 16 | 0x40u;
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

}  // namespace

void pack_tiles(const TileOrder& order, const float* source, bool bfloat16, float* to) {
    const int64_t rows = static_cast<int64_t>(order.rows.size()), depth = static_cast<int64_t>(order.columns.size());
    for (int64_t first = 0; first < rows; first += order.tile) {
        const int64_t* row = order.rows.data() + first;
        const auto at = [&](int64_t r, int64_t k) {
            const int64_t column = k < depth ? order.columns[k] : -1;
            return row[r] < 0 || column < 0 ? 0.0f : source[row[r] + column];
        };
        for (int64_t k = 0; k < depth; k += bfloat16 ? 2 : 1, to += order.tile) {
            for (int64_t r = 0; r < order.tile; ++r) {
                to[r] = at(r, k);
                if (!bfloat16) continue;
                const uint32_t pair = rounded(to[r]) | rounded(at(r, k + 1)) << 16;
                std::memcpy(to + r, &pair, sizeof pair);
            }
        }
    }
}

}  // namespace swk
