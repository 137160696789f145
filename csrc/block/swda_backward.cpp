// Gradients of swda_block, swda_attention and gated_ffn on the CPU. The formulas are in swda_backward.h. Word is float for
// products of float32 and Pair for products of bfloat16 (base/tile.h); all sums are float32.
//
// Shapes: x, grad and dx (B, C, H, W), any strides; windows of w*w = N tokens, `heads` heads of d channels.
// Memory layout: a worker copies one window of x and grad into scratch as panels [panel][C][kPanel] and writes one
// window of dx. Between the projections a head's tokens are rows [channel][pitch]. Weights, their transposes and the
// sums of their gradients come from L2 or L3 for each window.
// MACs and bytes per pixel: swda_backward.h.
// Scratch of a worker at window 8 with AVX-512: at most 310, 461, 792 and 1012 KiB at C = 24, 48, 96 and 192; at window 16
// up to 7.4 MiB (C = 384).
#include "swda_backward.h"

#include "../base/parallel.h"
#include "attention_backward.h"
#include "chunk_sums.h"
#include "ffn_backward.h"
#include "window.h"

namespace swk::SWK_ISA {
namespace {

// Panels of the FFN that are processed together: 128 tokens, because the weights and their sums, 48 C hidden bytes, are
// read or written once for them (18 MB at C = 384).
constexpr int64_t kFfnPanels = 128 / kPanel;

// Scratch of one worker: offsets of its parts. What a second copy for another order of pairs takes is 0 for float.
template <class Word>
struct Workspace {
    int64_t channels, panels;
    HeadShape head;
    GradientShape<Word> head_gradient;
    FfnGradientShape<Word> ffn;
    int64_t floats = 0;
    int64_t grad, tokens, normed = 0, attended = 0, turned = 0, statistics = 0, region = 0, y = 0, rows = 0, of_rows = 0;
    int64_t grad_factors = 0, attended_tokens = 0, of_rows_tokens = 0;
    int64_t head_at = 0, ffn_at = 0;

    Workspace(int64_t channels, int64_t heads, int64_t window, int64_t hidden)
        : channels(channels),
          panels(heads ? filled(window * window, kPanel) / kPanel : kFfnPanels),
          head(heads ? HeadShape(channels, heads, window) : HeadShape(2, 1, 1)),
          head_gradient(head),
          ffn(channels, hidden ? hidden : 1, panels < kFfnPanels ? panels : kFfnPanels) {
        const auto take = [this](int64_t wanted) { return floats += filled(wanted, 16), floats - filled(wanted, 16); };
        const int64_t map = panels * channels * kPanel;
        grad = take(map), tokens = take(map);
        if (heads) {
            normed = take(panels * words<Word>(channels) * kPanel), attended = take(map), y = take(map);
            turned = take(panels * kPanelWords<Word> * turned_columns(channels));
            if (kDepth<Word> == 2) {
                grad_factors = take(panels * words<Word>(channels) * kPanel);
                attended_tokens = take(map / 2), of_rows_tokens = take(3 * map / 2);
            }
            statistics = take(panels * 2 * kPanel), region = take(panels * kPanel);
            rows = take(3 * channels * head.pitch), of_rows = take(3 * map);
            head_at = take(head.scratch_floats + head_gradient.floats);
        }
        if (hidden) ffn_at = take(ffn.floats);
        take(kTileRows * kPanel);  // add_product reads past the last row of a map
    }
};

// ---- one window ----------------------------------------------------------------------------------------------------

// The gradient of windows, in the scratch of one worker.
template <class Word>
class BlockGradient {
public:
    BlockGradient(const SwdaBackwardArgs& args, const Workspace<Word>& space, float* scratch)
        : args_(args),
          space_(space),
          shape_(space.head),
          at_(scratch),
          head_(shape_, space.head_gradient, args.forward.attention, scratch + space.head_at),
          ffn_(space.ffn, args.forward.ffn, args.transposed, scratch + space.ffn_at),
          buffers_(scratch + space.tokens, words_at(space.normed), scratch + space.attended, scratch + space.region) {}

    void window(int64_t index, const AttentionGradients& sums, const FfnGradients& ffn_sums) {
        const Window<Word> window(args_.forward, shape_, buffers_, index);
        const Regions regions = window.mark_regions();
        window.read(0, shape_.panels, at_ + space_.statistics);
        window.read(args_.grad, grad());
        attend(regions);
        // Before the projection below makes factors over the channels of it.
        const Word* attended = token_factors(buffers_.attended, shape_.panels * shape_.channels,
                                             words_at(space_.attended_tokens));
        if (args_.forward.ffn.hidden) {
            float* y = at_ + space_.y;
            __builtin_memcpy(y, buffers_.tokens, shape_.panels * map_panel() * sizeof(float));
            window.project(0, shape_.panels, y);
            for (int64_t first = 0; first < shape_.panels; first += kFfnPanels) {
                const int64_t left = shape_.panels - first, count = left < kFfnPanels ? left : kFfnPanels;
                ffn_.backward(y + first * map_panel(), count, grad() + first * map_panel(), ffn_sums);
            }
        }
        attention_backward(attended, regions, sums);
        window.write(grad());
    }

private:
    const SwdaBackwardArgs& args_;
    const Workspace<Word>& space_;
    const HeadShape& shape_;
    float* at_;
    HeadGradient<Word> head_;
    FfnGradient<Word> ffn_;
    WindowBuffers<Word> buffers_;

    Word* words_at(int64_t offset) const { return reinterpret_cast<Word*>(at_ + offset); }

    // Gradient of out, then of y, then of x.
    float* grad() const { return at_ + space_.grad; }
    int64_t units() const { return 2 * shape_.heads; }
    int64_t unit_rows() const { return 3 * shape_.size; }
    int64_t map_panel() const { return shape_.channels * kPanel; }
    int64_t depth() const { return words<Word>(shape_.channels); }
    // qkv of a head before the depth-wise convolution, [3d][pitch].
    float* rows(int64_t unit) const { return at_ + space_.rows + unit * unit_rows() * shape_.pitch; }

    // rows = qkv normed + bias; attended = core(rows).
    void attend(const Regions& regions) {
        for (int64_t unit = 0; unit < units(); ++unit) {
            head_.make_rows(buffers_.normed, unit, rows(unit));
            head_.forward(rows(unit), regions, unit >= shape_.heads, unit % shape_.heads,
                          buffers_.attended + unit * shape_.size * kPanel);
        }
    }

    // grad is the gradient of y on entry, that of x on return.
    void attention_backward(const Word* attended, const Regions& regions, const AttentionGradients& sums) {
        constexpr int kWords = kPanelWords<Word>;
        const int64_t channels = shape_.channels, panels = shape_.panels, columns = turned_columns(channels);
        const int64_t panel_words = depth() * kPanel;
        Word* turned = words_at(space_.turned);
        const Word* factors = nullptr;
        for (int64_t p = panels - 1; p >= 0; --p) {
            factors = channel_factors(grad() + p * map_panel(), channels,
                                      words_at(space_.grad_factors) + p * panel_words);
        }
        if (sums.proj) {
            turn_panels(factors, channels, panel_words, panels, turned);
            add_product(attended, channels, channels * kWords, turned, columns, panels, sums.proj);
        }
        if (sums.proj_bias) add_rows(grad(), channels, map_panel(), panels, sums.proj_bias);
        heads_backward(factors, regions, sums);
        float* of_rows = at_ + space_.of_rows;
        if (sums.qkv_bias) add_rows(of_rows, 3 * channels, 3 * map_panel(), panels, sums.qkv_bias);
        if (sums.qkv) {
            turn_panels(buffers_.normed, channels, panel_words, panels, turned);
            const Word* tokens = token_factors(of_rows, panels * 3 * channels, words_at(space_.of_rows_tokens));
            add_product(tokens, 3 * channels, 3 * channels * kWords, turned, columns, panels, sums.qkv);
        }
        add_input_gradient(of_rows, sums.norm);
    }

    // Adds the gradient of the norm's input to grad; `of_rows` is overwritten.
    void add_input_gradient(float* of_rows, float* norm_sums) {
        const int64_t channels = shape_.channels;
        for (int64_t p = 0; p < shape_.panels; ++p) {
            float* panel = of_rows + p * 3 * map_panel();
            channel_factors(panel, 3 * channels, reinterpret_cast<Word*>(panel));
        }
        float* of_normed = buffers_.attended;  // no longer needed
        multiply_panels(reinterpret_cast<const Word*>(args_.transposed.qkv), channels, words<Word>(3 * channels),
                        reinterpret_cast<const Word*>(of_rows), 3 * map_panel(), shape_.panels,
                        [&](const Tile& tile, int64_t row, int64_t panel) {
            store_tile(tile, of_normed + panel * map_panel() + row * kPanel, kPanel, channels - row);
        });
        for (int64_t p = 0; p < shape_.panels; ++p) {
            norm_panel_backward(of_normed + p * map_panel(), buffers_.tokens + p * map_panel(), channels,
                                args_.forward.attention.norm_weight, at_ + space_.statistics + p * 2 * kPanel,
                                grad() + p * map_panel(), norm_sums);
        }
    }

    // of_rows [panel][3C][kPanel] = gradient of qkv before the depth-wise convolution. `factors`: the gradient of y.
    void heads_backward(const Word* factors, const Regions& regions, const AttentionGradients& sums) {
        const int64_t channels = shape_.channels, side = 2 * shape_.window - 1;
        for (int64_t unit = 0; unit < units(); ++unit) {
            const int64_t first = unit * shape_.size, head = unit % shape_.heads;
            for (int64_t panel = 0; panel < shape_.panels; ++panel) {
                project_gradient(factors + panel * depth() * kPanel, first, head_.out() + panel * kPanel);
            }
            float* of_qkv = rows(unit);
            head_.backward(of_qkv, regions, unit >= shape_.heads, head, sums.dwconv + unit * unit_rows() * 10 * kLanes,
                           sums.bias + head * side * side, sums.log_scale + head);
            for (int64_t row = 0; row < unit_rows(); ++row) {
                for (int64_t panel = 0; panel < shape_.panels; ++panel) {
                    const float* from = of_qkv + row * shape_.pitch + panel * kPanel;
                    float* to = at_ + space_.of_rows + (panel * 3 * channels + unit * unit_rows() + row) * kPanel;
                    for (int v = 0; v < kPanelVectors; ++v) store(to + v * kLanes, load(from + v * kLanes));
                }
            }
        }
    }

    // d rows of proj^T grad for one panel of factors, from channel `first` on; `to` has the pitch of a head's rows.
    void project_gradient(const Word* factors, int64_t first, float* to) const {
        const Word* weight = reinterpret_cast<const Word*>(args_.transposed.proj);
        for (int64_t row = first / kTileRows * kTileRows; row < first + shape_.size; row += kTileRows) {
            const Tile tile = multiply(depth(), weight + row * depth(), kTileRows, factors, kPanel);
            for (int r = 0; r < kTileRows; ++r) {
                const int64_t own = row + r - first;
                if (own < 0 || own >= shape_.size) continue;
                for (int v = 0; v < kPanelVectors; ++v) store(to + own * shape_.pitch + v * kLanes, tile.row[r][v]);
            }
        }
    }
};

// ---- all of them ---------------------------------------------------------------------------------------------------

// Calls work(chunk, worker's scratch) for every chunk; a free worker takes the next one.
template <class Work>
void each_chunk(const SwdaBackwardArgs& args, int64_t scratch_floats, const Work& work) {
    struct Job {
        const SwdaBackwardArgs& args;
        int64_t scratch_floats;
        const Work& work;
        int64_t next;
    } job{args, scratch_floats, work, 0};
    const int threads = args.chunks < args.forward.threads ? static_cast<int>(args.chunks) : args.forward.threads;
    run_team(threads, [](int worker, int, void* context) {
        Job& job = *static_cast<Job*>(context);
        for (;;) {
            const int64_t chunk = __atomic_fetch_add(&job.next, 1, __ATOMIC_RELAXED);
            if (chunk >= job.args.chunks) return;
            job.work(chunk, job.args.forward.scratch + worker * job.scratch_floats);
        }
    }, &job);
}

template <class Word>
void windows_backward(const SwdaBackwardArgs& args, const Workspace<Word>& space, const ChunkSums& all_sums) {
    const SwdaBlockArgs& forward = args.forward;
    const int64_t windows = forward.batch * (forward.height / forward.window) * (forward.width / forward.window);
    each_chunk(args, space.floats, [&](int64_t chunk, float* scratch) {
        BlockGradient<Word> gradient(args, space, scratch);
        AttentionGradients sums{};
        FfnGradients ffn_sums{};
        all_sums.begin(args.sums + chunk * all_sums.floats(), sums, ffn_sums);
        const int64_t last = windows * (chunk + 1) / args.chunks;
        for (int64_t index = windows * chunk / args.chunks; index < last; ++index) {
            gradient.window(index, sums, ffn_sums);
        }
    });
}

// Panels of consecutive pixels, kFfnPanels at a time.
template <class Word>
void pixels_backward(const SwdaBackwardArgs& args, const Workspace<Word>& space, const ChunkSums& all_sums) {
    const SwdaBlockArgs& forward = args.forward;
    const int64_t channels = forward.channels, floats = channels * kPanel;
    const int64_t panels = filled(forward.batch * forward.height * forward.width, kPanel) / kPanel;
    each_chunk(args, space.floats, [&](int64_t chunk, float* scratch) {
        const FfnGradient<Word> gradient(space.ffn, forward.ffn, args.transposed, scratch + space.ffn_at);
        AttentionGradients none{};
        FfnGradients sums{};
        all_sums.begin(args.sums + chunk * all_sums.floats(), none, sums);
        float *tokens = scratch + space.tokens, *grad = scratch + space.grad;
        const int64_t last = panels * (chunk + 1) / args.chunks;
        for (int64_t first = panels * chunk / args.chunks; first < last; first += kFfnPanels) {
            const int64_t count = last - first < kFfnPanels ? last - first : kFfnPanels;
            for (int64_t p = 0; p < count; ++p) {
                read_panel(forward.x, pixel_place(forward, forward.x, first + p), channels, tokens + p * floats);
                read_panel(args.grad, pixel_place(forward, args.grad, first + p), channels, grad + p * floats);
            }
            gradient.backward(tokens, count, grad, sums);
            for (int64_t p = 0; p < count; ++p) {
                write_panel(forward.out, pixel_place(forward, forward.out, first + p), channels, grad + p * floats);
            }
        }
    });
}

template <class Word>
void backward_in(const SwdaBackwardArgs& args) {
    const SwdaBlockArgs& forward = args.forward;
    const Workspace<Word> space(forward.channels, forward.heads, forward.window, forward.ffn.hidden);
    const ChunkSums sums(forward.channels, forward.heads, forward.window, forward.ffn.hidden, args.attention, args.ffn);
    if (forward.heads) windows_backward(args, space, sums);
    else pixels_backward(args, space, sums);
    sums.add_up(args.sums, args.chunks, forward.threads);
}

template <class Word>
int64_t scratch_floats(const SwdaBackwardLayoutArgs& args) {
    return Workspace<Word>(args.channels, args.heads, args.window, args.hidden).floats;
}

}  // namespace

void swda_backward(const SwdaBackwardArgs& args) {
    if (args.forward.bfloat16) backward_in<Pair>(args);
    else backward_in<float>(args);
}

void swda_backward_layout(const SwdaBackwardLayoutArgs& args) {
    *args.scratch_floats = args.bfloat16 ? scratch_floats<Pair>(args) : scratch_floats<float>(args);
    *args.sums_floats = ChunkSums(args.channels, args.heads, args.window, args.hidden, {}, {}).floats();
}

}  // namespace swk::SWK_ISA
