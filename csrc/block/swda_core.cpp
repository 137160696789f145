// swda_core and swda_core_backward on the CPU, float32. The formulas are in swda_core.h.
//
//   attended = concat(window half, channel half) of dwconv3x3(qkv), window by window; and its gradients
//
// Shapes: qkv (B, 3C, H, W), attended (B, C, H, W), any strides; N tokens of a window, d channels of a head.
// Memory layout: the unit of work is one head of one window, copied to scratch as rows [channel][pitch] of tokens.
// MACs per pixel: 27 C + C N + C d forward; 81 C + 2.5 C N + 2.5 C d backward.
// Bytes per pixel: 16 C forward (qkv read, attended written), 28 C backward (also the gradient of qkv written).
// A free worker takes the next unit. Units write to separate outputs, and sums over windows are written per window and
// added by the caller, so the result does not depend on the number of threads.
#include "swda_core.h"

#include "../base/parallel.h"
#include "attention_backward.h"
#include "tokens.h"

namespace swk::SWK_ISA {
namespace {

struct Workspace {
    HeadShape shape;
    GradientShape gradient;
    int64_t region_at, panels_at, floats;  // offsets: regions of a window's tokens; staging panels [panel][C][kPanel]

    Workspace(int64_t channels, int64_t heads, int64_t window) : shape(channels, heads, window), gradient(shape) {
        region_at = HeadShape::up(shape.scratch_floats + gradient.floats, 16);
        panels_at = region_at + gradient.keys;
        floats = panels_at + shape.panels * kPanel * channels;
    }
};

// One window of the part: the addresses of its tokens, and copies between images and rows [channel][pitch].
class PartWindow {
public:
    PartWindow(const SwdaCoreArgs& args, const Workspace& space, float* scratch, int64_t index)
        : args_(args), space_(space), region_(scratch + space.region_at), panels_(scratch + space.panels_at) {
        const int64_t across = args.width / args.window, down = args.height / args.window;
        column_ = index % across * args.window;
        row_ = index / across % down * args.window;
        batch_ = index / across / down;
    }

    Regions mark_regions() const {
        const bool last_row = args_.shift && args_.last_row && row_ + args_.window == args_.height;
        const bool last_column = args_.shift && args_.last_column && column_ + args_.window == args_.width;
        const int64_t w = args_.window, edge = w - args_.shift;
        for (int64_t t = 0; t < space_.gradient.keys; ++t) {
            region_[t] = static_cast<float>((last_row && t / w >= edge) * 2 + (last_column && t % w >= edge));
        }
        return {last_row || last_column, region_};
    }

    // Copies d channels of the image, starting at `channel`, to rows [d][pitch]; zeros after the last token.
    void read(const ImageView& image, int64_t channel, float* rows) const {
        const HeadShape& shape = space_.shape;
        for (int64_t panel = 0; panel < shape.panels; ++panel) {
            read_panel(from(image, channel), place(image, panel), shape.size, panels_);
            for (int64_t c = 0; c < shape.size; ++c) {
                float* to = rows + c * shape.pitch + panel * kPanel;
                for (int v = 0; v < kPanelVectors; ++v) store(to + v * kLanes, load(panels_ + c * kPanel + v * kLanes));
            }
        }
    }

    // The inverse of `read`; elements after the last token are not written.
    void write(const float* rows, const ImageView& image, int64_t channel) const {
        const HeadShape& shape = space_.shape;
        for (int64_t panel = 0; panel < shape.panels; ++panel) {
            for (int64_t c = 0; c < shape.size; ++c) {
                const float* row = rows + c * shape.pitch + panel * kPanel;
                for (int v = 0; v < kPanelVectors; ++v) store(panels_ + c * kPanel + v * kLanes, load(row + v * kLanes));
            }
            write_panel(from(image, channel), place(image, panel), shape.size, panels_);
        }
    }

    // [panel][C][kPanel], the output layout of Head::attend, which fills d of the C channels.
    float* panels() const { return panels_; }

    void write_panels(const ImageView& image, int64_t channel) const {
        const HeadShape& shape = space_.shape;
        for (int64_t panel = 0; panel < shape.panels; ++panel) {
            write_panel(from(image, channel), place(image, panel), shape.size,
                        panels_ + panel * shape.channels * kPanel);
        }
    }

private:
    const SwdaCoreArgs& args_;
    const Workspace& space_;
    float *region_, *panels_;
    int64_t batch_, row_, column_;

    static ImageView from(ImageView image, int64_t channel) {
        image.data += channel * image.channel_stride;
        return image;
    }

    PanelPlace place(const ImageView& image, int64_t panel) const {
        PanelPlace place{};
        const int64_t w = args_.window;
        for (int64_t t = panel * kPanel; place.count < kPanel && t < w * w; ++t) {
            place.offset[place.count++] = batch_ * image.batch_stride + (row_ + t / w) * image.row_stride +
                                          (column_ + t % w) * image.column_stride;
        }
        return place;
    }
};

// Calls visit(buffers of the head, its window, window index, unit) for every unit = half * heads + head of every
// window.
template <class Visit>
void each_head(const SwdaCoreArgs& args, const Visit& visit) {
    struct Job {
        const SwdaCoreArgs& args;
        const Visit& visit;
        const Workspace space;
        int64_t units, next;
    } job{args, visit, Workspace(args.channels, args.heads, args.window),
          args.batch * (args.height / args.window) * (args.width / args.window) * 2 * args.heads, 0};
    const int threads = job.units < args.threads ? static_cast<int>(job.units) : args.threads;
    if (job.units == 0) return;
    run_team(threads, [](int worker, int, void* context) {
        Job& job = *static_cast<Job*>(context);
        float* scratch = job.args.scratch + worker * job.space.floats;
        HeadGradient head(job.space.shape, job.space.gradient, job.args.weights, scratch);
        for (;;) {
            const int64_t index = __atomic_fetch_add(&job.next, 1, __ATOMIC_RELAXED);
            if (index >= job.units) return;
            const int64_t heads = 2 * job.args.heads, window = index / heads, unit = index % heads;
            const PartWindow place(job.args, job.space, scratch, window);
            const int64_t first = unit / job.args.heads * 3 * (job.args.channels / 2);
            for (int part = 0; part < 3; ++part) {
                const int64_t channel =
                    first + part * (job.args.channels / 2) + unit % job.args.heads * job.space.shape.size;
                place.read(job.args.qkv, channel, head.rows() + part * job.space.shape.size * job.space.shape.pitch);
            }
            job.visit(head, place, job.space, window, unit);
        }
    }, &job);
}

}  // namespace

void swda_core(const SwdaCoreArgs& args) {
    each_head(args, [&](HeadGradient& head, const PartWindow& place, const Workspace& space, int64_t, int64_t unit) {
        head.forward(place.mark_regions(), unit >= args.heads, unit % args.heads, place.panels());
        place.write_panels(args.attended, unit * space.shape.size);
    });
}

void swda_core_backward(const SwdaCoreArgs& args) {
    const int64_t table = (2 * args.window - 1) * (2 * args.window - 1);
    each_head(args, [&](HeadGradient& head, const PartWindow& place, const Workspace& space, int64_t window,
                        int64_t unit) {
        const HeadShape& shape = space.shape;
        const int64_t half = unit / args.heads, number = unit % args.heads;
        place.read(args.attended, unit * shape.size, head.out());
        head.backward(place.mark_regions(), static_cast<int>(half), number,
                      args.grad_dwconv + (window * 2 * args.heads + unit) * 3 * shape.size * 10,
                      args.grad_bias + (window * args.heads + number) * table,
                      args.grad_log_scale + window * args.heads + number);
        for (int part = 0; part < 3; ++part) {
            const int64_t channel = (half * 3 + part) * (args.channels / 2) + number * shape.size;
            place.write(head.rows() + part * shape.size * shape.pitch, args.grad_qkv, channel);
        }
    });
}

void swda_core_layout(const SwdaCoreLayoutArgs& args) {
    *args.scratch_floats = Workspace(args.channels, args.heads, args.window).floats;
}

}  // namespace swk::SWK_ISA
