// swda_block and swda_attention on the CPU. The formulas are in swda_block.h. Word is float for products of float32 and
// Pair for products of bfloat16 (base/tile.h).
//
//   swda_attention   y   = x + proj(concat(window half, channel half)) of norm1(x)
//   swda_block       out = y + ffn(norm2(y))
//
// Shapes: x and out (B, C, H, W), any strides; windows of w*w = N tokens, `heads` heads of d = C / 2 / heads channels.
// Memory layout: a worker copies one window into scratch as panels [panel][C][kPanel], processes it and writes it back.
// MACs per pixel: 4 C^2 + 27 C + C N + C d (attention), 3 C hidden (FFN).
// Bytes per pixel: 8 C, x read once and out written once. Weights come from L2 or L3 for each window.
// Scratch of a worker: 285, 444, 732 and 1328 KiB at C = 48, 96, 192 and 384 with AVX2, at most 1406 KiB with AVX-512.
// At C = 384 that exceeds an L2 cache of 1 MiB, and so do the block's weights (6 MB).
#include "swda_block.h"

#include "../base/parallel.h"
#include "window.h"

namespace swk::SWK_ISA {
namespace {

int64_t gate_floats(int64_t channels, int64_t hidden) {
    return hidden ? panel_group(channels) * hidden_chunk<float>(hidden) * kPanel : 0;
}

// Scratch of one worker: the buffers of a window, those of a head, and the gate of the FFN.
struct Workspace {
    HeadShape shape;
    int64_t head_at, gate_at, floats;

    Workspace(int64_t channels, int64_t heads, int64_t window, int64_t hidden) : shape(channels, heads, window) {
        head_at = filled(WindowBuffers<float>::floats(shape), 16);
        gate_at = head_at + shape.scratch_floats;
        floats = gate_at + gate_floats(channels, hidden);
    }
};

template <class Word>
Word* as(float* scratch) {
    return reinterpret_cast<Word*>(scratch);
}

// Each worker processes whole windows and takes the next one when it is free.
template <class Word>
void each_window_alone(const SwdaBlockArgs& args, const Workspace& space, const FfnWeights* ffn, int64_t windows) {
    struct Job {
        const SwdaBlockArgs& args;
        const Workspace& space;
        const FfnWeights* ffn;
        int64_t windows, next;
    } job{args, space, ffn, windows, 0};
    const int threads = windows < args.threads ? static_cast<int>(windows) : args.threads;
    run_team(threads, [](int worker, int, void* context) {
        Job& job = *static_cast<Job*>(context);
        const HeadShape& shape = job.space.shape;
        float* scratch = job.args.scratch + worker * job.space.floats;
        const WindowBuffers<Word> buffers(shape, scratch);
        HeadOf<Word> head(shape, job.args.attention, scratch + job.space.head_at);
        for (;;) {
            const int64_t index = __atomic_fetch_add(&job.next, 1, __ATOMIC_RELAXED);
            if (index >= job.windows) return;
            const Window<Word> window(job.args, shape, buffers, index);
            const Regions regions = window.mark_regions();
            window.read(0, shape.panels);
            for (int64_t unit = 0; unit < 2 * shape.heads; ++unit) {
                head.attend(buffers.normed, regions, unit >= shape.heads, unit % shape.heads, buffers.attended);
            }
            window.finish(0, shape.panels, job.ffn, as<Word>(scratch + job.space.gate_at));
        }
    }, &job);
}

// All workers share one window: its panels (norm), then its heads, then its panels again (projection and FFN).
template <class Word>
void one_window_together(const SwdaBlockArgs& args, const Workspace& space, const FfnWeights* ffn, int64_t index) {
    const HeadShape& shape = space.shape;
    const WindowBuffers<Word> buffers(shape, args.scratch);
    const Window<Word> window(args, shape, buffers, index);
    const Regions regions = window.mark_regions();
    const auto scratch = [&](int worker) { return args.scratch + worker * space.floats; };
    parallel_for(shape.panels, 1, 1, args.threads, [&](int64_t first, int64_t last, int) { window.read(first, last); });
    parallel_for(2 * shape.heads, 1, 1, args.threads, [&](int64_t first, int64_t last, int worker) {
        HeadOf<Word> head(shape, args.attention, scratch(worker) + space.head_at);
        for (int64_t unit = first; unit < last; ++unit) {
            head.attend(buffers.normed, regions, unit >= shape.heads, unit % shape.heads, buffers.attended);
        }
    });
    parallel_for(shape.panels, 1, 1, args.threads, [&](int64_t first, int64_t last, int worker) {
        window.finish(first, last, ffn, as<Word>(scratch(worker) + space.gate_at));
    });
}

template <class Word>
void run_in(const SwdaBlockArgs& args, const FfnWeights* ffn) {
    const Workspace space(args.channels, args.heads, args.window, ffn ? ffn->hidden : 0);
    const int64_t windows = args.batch * (args.height / args.window) * (args.width / args.window);
    // With fewer than 8 windows per worker, the remainder of an even division is shared window by window: one worker
    // processing it while the others wait would cost more than an eighth of the time.
    int64_t alone = windows;
    if (windows < 8 * args.threads) alone = windows / args.threads * args.threads;
    if (alone) each_window_alone<Word>(args, space, ffn, alone);
    for (int64_t index = alone; index < windows; ++index) one_window_together<Word>(args, space, ffn, index);
}

void run(const SwdaBlockArgs& args, const FfnWeights* ffn) {
    if (args.bfloat16) run_in<Pair>(args, ffn);
    else run_in<float>(args, ffn);
}

// Pixels need no window here: panels of consecutive pixels, a group at a time.
template <class Word>
void gated_ffn_in(const SwdaBlockArgs& args) {
    const int64_t channels = args.channels, group = panel_group(channels), floats = channels * kPanel;
    const int64_t panels = (args.batch * args.height * args.width + kPanel - 1) / kPanel;
    const int64_t scratch_floats = 2 * group * floats + gate_floats(channels, args.ffn.hidden);
    parallel_for(panels, group, group, args.threads, [&](int64_t begin, int64_t end, int worker) {
        float* tokens = args.scratch + worker * scratch_floats;
        Word *normed = as<Word>(tokens + group * floats), *gate = as<Word>(tokens + 2 * group * floats);
        for (int64_t first = begin; first < end; first += group) {
            const int64_t count = end - first < group ? end - first : group;
            for (int64_t p = 0; p < count; ++p) {
                read_panel(args.x, pixel_place(args, args.x, first + p), channels, tokens + p * floats);
            }
            ffn_panels(args.ffn, channels, count, tokens, normed, gate);
            for (int64_t p = 0; p < count; ++p) {
                write_panel(args.out, pixel_place(args, args.out, first + p), channels, tokens + p * floats);
            }
        }
    });
}

}  // namespace

void swda_block(const SwdaBlockArgs& args) { run(args, &args.ffn); }

void swda_attention(const SwdaBlockArgs& args) { run(args, nullptr); }

void gated_ffn(const SwdaBlockArgs& args) {
    if (args.bfloat16) gated_ffn_in<Pair>(args);
    else gated_ffn_in<float>(args);
}

void swda_layout(const SwdaLayoutArgs& args) {
    *args.tile_rows = kTileRows;
    if (args.heads == 0) {
        *args.bias_floats = 0;
        *args.scratch_floats = 2 * panel_group(args.channels) * args.channels * kPanel +
                               gate_floats(args.channels, args.hidden);
        return;
    }
    const Workspace space(args.channels, args.heads, args.window, args.hidden);
    const HeadShape& shape = space.shape;
    *args.scratch_floats = space.floats;
    *args.bias_floats = shape.bias_floats;
    if (!args.bias_index) return;
    if (shape.in_table) {
        for (int64_t i = 0; i < shape.bias_floats; ++i) args.bias_index[i] = i;
        return;
    }
    const int64_t w = shape.window;  // [panel][key][query]; 0 for queries past the last one
    for (int64_t panel = 0, i = 0; panel < shape.panels; ++panel) {
        for (int64_t key = 0; key < shape.tokens; ++key) {
            for (int64_t query = panel * kPanel; query < (panel + 1) * kPanel; ++query, ++i) {
                const int64_t rows = query / w - key / w + w - 1, columns = query % w - key % w + w - 1;
                args.bias_index[i] = query < shape.tokens ? rows * (2 * w - 1) + columns : 0;
            }
        }
    }
}

}  // namespace swk::SWK_ISA
