// One window of swda_block: copied into scratch, processed by heads, projection and FFN, and written back.
#pragma once

#include "attention.h"
#include "ffn.h"

namespace swk::SWK_ISA {

// Number of panels that are multiplied by a tile of weights before the next tile is loaded: weights are read from L2 or
// L3 once per group, and the activations of the group stay in L1 and L2. gated_ffn on 16x16 pixels, AVX-512, one core,
// GFLOP/s for groups of 1, 2, 4, 8 and 16: 201, 201, 200, 200, 200 (C 96); 225, 228, 222, 222, 223 (C 192); 168, 198,
// 185, 191, 192 (C 384); AVX2, CPU time, C 384, groups of 1, 2 and 4: 97, 94, 101. The machine was busy, so differences
// of 5 % are noise.
static inline int64_t panel_group(int64_t channels) { return channels >= 256 ? 4 : 2; }

// Scratch of a window: its tokens, the output of the heads, and the regions of the shift mask. Word: see base/tile.h.
template <class Word>
struct WindowBuffers {
    float *tokens, *attended;  // [panel][C][kPanel]
    Word* normed;              // [panel][word of C][kPanel]
    float* region;             // [panels * kPanel]

    static int64_t floats(const HeadShape& shape) {
        return shape.panels * kPanel * (3 * shape.channels + 1);
    }

    WindowBuffers(const HeadShape& shape, float* scratch) {
        const int64_t map = shape.panels * kPanel * shape.channels;
        tokens = scratch, attended = tokens + map, region = attended + map;
        normed = reinterpret_cast<Word*>(region + shape.panels * kPanel);
    }

    WindowBuffers(float* tokens, Word* normed, float* attended, float* region)
        : tokens(tokens), attended(attended), normed(normed), region(region) {}
};

template <class Word>
class Window {
public:
    Window(const SwdaBlockArgs& args, const HeadShape& shape, const WindowBuffers<Word>& buffers, int64_t index)
        : args_(args), shape_(shape), at_(buffers) {
        const int64_t across = args.width / args.window, down = args.height / args.window;
        column_ = index % across * args.window;
        row_ = index / across % down * args.window;
        batch_ = index / across / down;
        last_row_ = args.shift && row_ + args.window == args.height;
        last_column_ = args.shift && column_ + args.window == args.width;
    }

    // Regions of the rolled map inside this window. Only the last window of a row or column contains more than one.
    Regions mark_regions() const {
        if (last_row_ || last_column_) {
            const int64_t w = args_.window, edge = w - args_.shift;
            for (int64_t t = 0; t < shape_.panels * kPanel; ++t) {
                at_.region[t] = static_cast<float>((last_row_ && t / w >= edge) * 2 + (last_column_ && t % w >= edge));
            }
        }
        return {last_row_ || last_column_, at_.region};
    }

    // Tokens and normed tokens; their statistics [panel][2][kPanel], for the gradient, unless that is null.
    void read(int64_t first_panel, int64_t last_panel, float* statistics = nullptr) const {
        const int64_t floats = shape_.channels * kPanel;
        for (int64_t p = first_panel; p < last_panel; ++p) {
            read_panel(args_.x, place(args_.x, p), shape_.channels, at_.tokens + p * floats);
            norm_panel(at_.tokens + p * floats, shape_.channels, args_.attention.norm_weight,
                       args_.attention.norm_bias, at_.normed + p * normed_words(),
                       statistics ? statistics + p * 2 * kPanel : nullptr);
        }
    }

    // This window of another image of x's shape, in panels.
    void read(const ImageView& image, float* to) const {
        for (int64_t p = 0; p < shape_.panels; ++p) {
            read_panel(image, place(image, p), shape_.channels, to + p * shape_.channels * kPanel);
        }
    }

    void write(const float* from) const {
        for (int64_t p = 0; p < shape_.panels; ++p) {
            write_panel(args_.out, place(args_.out, p), shape_.channels, from + p * shape_.channels * kPanel);
        }
    }

    // Projection and residual, FFN if there is one, and the write to `out`. `gate` is scratch of ffn_panels for a
    // group.
    void finish(int64_t first_panel, int64_t last_panel, const FfnWeights* ffn, Word* gate) const {
        const int64_t floats = shape_.channels * kPanel, group = panel_group(shape_.channels);
        for (int64_t first = first_panel; first < last_panel; first += group) {
            const int64_t panels = last_panel - first < group ? last_panel - first : group;
            float* tokens = at_.tokens + first * floats;
            project(first, panels, tokens);
            if (ffn) ffn_panels(*ffn, shape_.channels, panels, tokens, at_.normed + first * normed_words(), gate);
            for (int64_t p = 0; p < panels; ++p) {
                write_panel(args_.out, place(args_.out, first + p), shape_.channels, tokens + p * floats);
            }
        }
    }

    // tokens += proj(attended) for `panels` panels starting at `first`.
    void project(int64_t first, int64_t panels, float* tokens) const {
        const int64_t channels = shape_.channels, floats = channels * kPanel;
        const float* bias = args_.attention.proj.bias;
        float* attended = at_.attended + first * floats;
        for (int64_t p = 0; p < panels; ++p) {
            channel_factors(attended + p * floats, channels, reinterpret_cast<Word*>(attended + p * floats));
        }
        const Word* factors = reinterpret_cast<const Word*>(attended);
        const Word* weight = weight_words<Word>(args_.attention.proj);
        multiply_panels(weight, channels, words<Word>(channels), factors, floats, panels,
                        [&](const Tile& tile, int64_t row, int64_t panel) {
            float* to = tokens + panel * floats + row * kPanel;
            for (int r = 0; r < kTileRows && row + r < channels; ++r) {
                for (int v = 0; v < kPanelVectors; ++v) {
                    float* at = to + r * kPanel + v * kLanes;
                    store(at, load(at) + (tile.row[r][v] + broadcast(bias[row + r])));
                }
            }
        });
    }

private:
    const SwdaBlockArgs& args_;
    const HeadShape& shape_;
    const WindowBuffers<Word>& at_;
    int64_t batch_, row_, column_;
    bool last_row_, last_column_;

    int64_t normed_words() const { return words<Word>(shape_.channels) * kPanel; }

    // The roll only changes addresses: token (y, x) of the rolled map is at (y + shift, x + shift) modulo the sides.
    PanelPlace place(const ImageView& image, int64_t panel) const {
        PanelPlace place{};
        const int64_t w = args_.window;
        int64_t y = panel * kPanel / w, x = panel * kPanel % w;
        for (; place.count < kPanel && y < w; ++place.count) {
            int64_t row = row_ + y + args_.shift, column = column_ + x + args_.shift;
            if (row >= args_.height) row -= args_.height;
            if (column >= args_.width) column -= args_.width;
            place.offset[place.count] =
                batch_ * image.batch_stride + row * image.row_stride + column * image.column_stride;
            if (++x == w) x = 0, ++y;
        }
        return place;
    }
};

}  // namespace swk::SWK_ISA
