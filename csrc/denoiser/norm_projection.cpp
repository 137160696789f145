// norm_projection on the CPU, float32.
//
//   out[b][pixel][o] = sum over c of weight[o][c] norm(x)[b][c][pixel] + bias[o]      norm: group_norm.h
//
// Shapes: x (B, C, H, W), out (B, H W, O). Memory layout: x in channels_last, weights [panel][C][panel width].
// MACs per pixel: C O. Bytes per pixel: 4 (2 C + O), x read twice (once for the statistics) and out written once.
// kNormedPixels pixels are normalised into scratch and multiplied by each panel of weights (80 KB at 640 channels).
#include "norm_projection.h"

#include "group_statistics.h"
#include "pixels.h"
#include "winograd.h"

namespace swk::SWK_ISA {
namespace {

static_assert(kNormedPixels == kBlockTiles && kSlice == kNormedSlice, "multiply_tiles takes the normed pixels");

// Writes normalised pixels as [slice][pixel][kSlice], the layout that multiply_tiles reads.
void norm_pixels(const GroupNormInput& norm, const float* folded, const float* from, int64_t pixels, float* to) {
    const float *mean = folded, *factor = folded + norm.channels, *offset = folded + 2 * norm.channels;
    for (int64_t c = 0; c < norm.channels; c += kLanes) {
        const int lanes = left_lanes(norm.channels - c);
        const F32 by = load(factor + c, 1, lanes), centre = load(mean + c, 1, lanes), add = load(offset + c, 1, lanes);
        float* column = to + c / kSlice * kNormedPixels * kSlice + c % kSlice;
        for (int64_t pixel = 0; pixel < pixels; ++pixel) {
            store(column + pixel * kSlice, madd(load(from + pixel * norm.x_strides.pixel + c, 1, lanes) - centre, by, add));
        }
    }
}

// multiply_tiles as a sum of partial sums of kPart terms: with one sum of 640 terms the largest error was 2.3 times
// that of torch's product.
constexpr int64_t kPart = 2 * kSlice;

Tile multiply_in_parts(int64_t channels, const float* rows, const float* weight) {
    Tile sum{};
    for (int64_t c = 0; c < channels; c += kPart) {
        const int64_t left = channels - c;
        const float* part = rows + c * kNormedPixels;
        const Tile tile = multiply_tiles(left < kPart ? left : kPart, part, weight + c * kPanel);
        for (int r = 0; r < kTileRows; ++r) {
            for (int v = 0; v < kPanelVectors; ++v) sum.row[r][v] += tile.row[r][v];
        }
    }
    return sum;
}

}  // namespace

void norm_projection(const NormProjectionArgs& args) {
    const GroupNormInput& norm = args.norm;
    const float* folded = norm_of_rows(norm);
    const int64_t blocks = (norm.pixels + kNormedPixels - 1) / kNormedPixels, all = norm.batch * blocks;
    const int64_t panels = (args.out_channels + kPanel - 1) / kPanel;
    // With too few blocks, workers divide the panels of a block, and each normalises it: C extra steps on C O / pieces.
    const bool whole = all % norm.threads == 0 || all >= 4 * norm.threads;
    const int64_t pieces = whole ? 1 : norm.threads < panels ? norm.threads : panels;
    const int64_t work = kNormedPixels * norm.channels * args.out_channels / kLanes / pieces;
    parallel_for(all * pieces, 1 + kGrain / (work + 1), 1, norm.threads, [&](int64_t begin, int64_t end, int worker) {
        float* normed = args.scratch + worker * point_floats(norm.channels);
        for (int64_t i = begin; i < end; ++i) {
            const int64_t piece = i % pieces, b = i / pieces / blocks, first = i / pieces % blocks * kNormedPixels;
            const int64_t left = norm.pixels - first, pixels = left < kNormedPixels ? left : kNormedPixels;
            norm_pixels(norm, folded + 3 * b * norm.channels,
                        norm.x + b * norm.x_strides.batch + first * norm.x_strides.pixel, pixels, normed);
            float* to = args.out + (b * norm.pixels + first) * args.out_channels;
            for (int64_t panel = panels * piece / pieces; panel < panels * (piece + 1) / pieces; ++panel) {
                const float* weight = args.weight + panel * kPanel * norm.channels;
                for (int64_t row = 0; row < pixels; row += kTileRows) {
                    const Tile tile = multiply_in_parts(norm.channels, normed + row * kSlice, weight);
                    store_pixels(tile, pixels - row, panel * kPanel, args.out_channels, args.bias,
                                 to + row * args.out_channels);
                }
            }
        }
    });
}

}  // namespace swk::SWK_ISA
