// Weights in the order that a kernel reads them (TiledMatrix and TransposedWeights). Compiled once, not per instruction set.
#pragma once

#include <cstdint>
#include <vector>

namespace swk {

// Element (row, k) of the packed matrix is element rows[row] + columns[k] of the source, or 0 where one of them is
// negative. `tile` divides the number of rows.
struct TileOrder {
    std::vector<int64_t> rows, columns;
    int64_t tile;
};

// to [tile][k][row in the tile], float32; or [tile][pair of k][row in the tile], two bfloat16 in a word, the first in its
// lower half, rounded to the nearest, ties to even. After an odd number of k comes a 0.
void pack_tiles(const TileOrder& order, const float* source, bool bfloat16, float* to);

}  // namespace swk
