// Bindings of the block: swda_block, its halves, and their gradients.
#include <algorithm>

#include "../base/pack.h"
#include "../dispatch/dispatch.h"
#include "arguments.h"

namespace swk::python {
namespace {

struct Layout {
    int64_t tile_rows = 0, scratch_floats = 0, bias_floats = 0;
};

Layout layout_of(int64_t channels, int64_t heads, int64_t window, int64_t hidden) {
    Layout layout;
    kernels().swda_layout({channels, heads, window, hidden, &layout.tile_rows, &layout.scratch_floats,
                           &layout.bias_floats, nullptr});
    return layout;
}

struct BackwardLayout {
    int64_t scratch_floats = 0, sums_floats = 0;
};

BackwardLayout backward_layout_of(int64_t channels, int64_t heads, int64_t window, int64_t hidden, bool bfloat16) {
    BackwardLayout layout;
    kernels().swda_backward_layout({channels, heads, window, hidden, bfloat16, &layout.scratch_floats,
                                    &layout.sums_floats});
    return layout;
}

std::vector<int64_t> bias_index(int64_t channels, int64_t heads, int64_t window) {
    Layout layout = layout_of(channels, heads, window, 0);
    std::vector<int64_t> index(layout.bias_floats);
    kernels().swda_layout({channels, heads, window, 0, &layout.tile_rows, &layout.scratch_floats, &layout.bias_floats,
                           index.data()});
    return index;
}

// Words of four bytes for the weights of `depth` input channels of an output channel.
int64_t words(int64_t depth, bool bfloat16) { return bfloat16 ? (depth + 1) / 2 : depth; }

struct Attention {
    Buffer norm_weight, norm_bias, qkv, qkv_bias, dwconv, dwconv_bias, proj, proj_bias, scale, bias;
    int64_t heads, window;

    void expect_fit(const std::vector<int64_t>& shape, int64_t shift) const {
        expect(heads >= 1 && shape[1] % (2 * heads) == 0, "twice the heads must divide the channels");
        expect(window >= 1 && shape[2] % window == 0 && shape[3] % window == 0, "the window must divide the sides");
        expect(shift >= 0 && shift < window, "the shift must be at least 0 and below the window");
    }

    void fill(AttentionWeights& to, int64_t channels, const Layout& layout, bool bfloat16) const {
        const int64_t rows = 2 * heads * filled(3 * (channels / 2 / heads), layout.tile_rows);
        const int64_t out_rows = filled(channels, layout.tile_rows), depth = words(channels, bfloat16);
        to.norm_weight = norm_weight.exactly(channels, "norm_weight");
        to.norm_bias = norm_bias.exactly(channels, "norm_bias");
        to.qkv = {qkv.exactly(rows * depth, "qkv"), qkv_bias.exactly(rows, "qkv_bias")};
        to.dwconv = dwconv.exactly(rows * 9, "dwconv");
        to.dwconv_bias = dwconv_bias.exactly(rows, "dwconv_bias");
        to.proj = {proj.exactly(out_rows * depth, "proj"), proj_bias.exactly(out_rows, "proj_bias")};
        to.scale = scale.exactly(heads, "scale");
        to.bias = bias.exactly(heads * layout.bias_floats, "bias");
    }
};

struct Ffn {
    Buffer norm_weight, norm_bias, project_in, project_in_bias, project_out, project_out_bias;
    int64_t hidden;

    void fill(FfnWeights& to, int64_t channels, const Layout& layout, bool bfloat16) const {
        const int64_t in_rows = 2 * filled(hidden, layout.tile_rows / 2), out_rows = filled(channels, layout.tile_rows);
        to.norm_weight = norm_weight.exactly(channels, "norm_weight");
        to.norm_bias = norm_bias.exactly(channels, "norm_bias");
        to.in = {project_in.exactly(in_rows * words(channels, bfloat16), "project_in"),
                 project_in_bias.exactly(in_rows, "project_in_bias")};
        to.out = {project_out.exactly(out_rows * words(hidden, bfloat16), "project_out"),
                  project_out_bias.exactly(out_rows, "project_out_bias")};
    }
};

ImageView image(const View& tensor) {
    expect_image(tensor);
    const auto& stride = tensor.strides;
    return {tensor.data, stride[0], stride[1], stride[2], stride[3]};
}

ImageView image(const Image& tensor) {
    ImageView view = image(tensor.view);
    view.bfloat16 = tensor.bfloat16;
    return view;
}

using Op = void (*Kernels::*)(const SwdaBlockArgs&);

// The arguments of a call of swda_block, of swda_attention (no ffn) or of gated_ffn (no attention), without scratch.
SwdaBlockArgs block_args(const Image& out, const Image& x, const Attention* attention, const Ffn* ffn, int64_t shift,
                         bool bfloat16, int threads) {
    expect_threads(threads);
    SwdaBlockArgs args{};
    args.x = image(x), args.out = image(out), args.bfloat16 = bfloat16, args.threads = threads;
    expect_same_shape(out.view, x.view);
    const std::vector<int64_t>& shape = x.view.sizes;
    args.batch = shape[0], args.channels = shape[1], args.height = shape[2], args.width = shape[3];
    if (attention) {
        attention->expect_fit(shape, shift);
        args.heads = attention->heads, args.window = attention->window, args.shift = shift;
    }
    if (ffn) expect((args.ffn.hidden = ffn->hidden) >= 1, "hidden must be at least 1");
    const Layout layout = layout_of(args.channels, args.heads, args.window, args.ffn.hidden);
    if (attention) attention->fill(args.attention, args.channels, layout, bfloat16);
    if (ffn) ffn->fill(args.ffn, args.channels, layout, bfloat16);
    return args;
}

void run(Op op, const Image& out, const Image& x, const Attention* attention, const Ffn* ffn, int64_t shift,
         bool bfloat16, const Buffer& scratch, int threads) {
    SwdaBlockArgs args = block_args(out, x, attention, ffn, shift, bfloat16, threads);
    const Layout layout = layout_of(args.channels, args.heads, args.window, args.ffn.hidden);
    args.scratch = scratch.at_least(threads * layout.scratch_floats, "scratch");
    const Kernels& chosen = kernels();
    py::gil_scoped_release unlocked;
    (chosen.*op)(args);
}

void swda_block(const Image& out, const Image& x, const Attention& attention, const Ffn& ffn, int64_t shift,
                bool bfloat16, const Buffer& scratch, int threads) {
    run(&Kernels::swda_block, out, x, &attention, &ffn, shift, bfloat16, scratch, threads);
}

void swda_attention(const Image& out, const Image& x, const Attention& attention, int64_t shift, bool bfloat16,
                    const Buffer& scratch, int threads) {
    run(&Kernels::swda_attention, out, x, &attention, nullptr, shift, bfloat16, scratch, threads);
}

void gated_ffn(const Image& out, const Image& x, const Ffn& ffn, bool bfloat16, const Buffer& scratch, int threads) {
    run(&Kernels::gated_ffn, out, x, nullptr, &ffn, 0, bfloat16, scratch, threads);
}

// Where the gradients of the weights go, and the transposed weights: AttentionGradients, FfnGradients and
// TransposedWeights of csrc/block/swda_backward.h.
struct AttentionGrads {
    Buffer qkv_transposed, proj_transposed, norm, qkv, qkv_bias, dwconv, proj, proj_bias, bias, log_scale;

    void fill(SwdaBackwardArgs& args, int64_t tile_rows) const {
        const int64_t channels = args.forward.channels, heads = args.forward.heads, side = 2 * args.forward.window - 1;
        const int64_t rows = filled(channels, tile_rows);
        const bool bfloat16 = args.forward.bfloat16;
        args.transposed.qkv = qkv_transposed.exactly(rows * words(3 * channels, bfloat16), "qkv_transposed");
        args.transposed.proj = proj_transposed.exactly(rows * words(channels, bfloat16), "proj_transposed");
        AttentionGradients& to = args.attention;
        to.norm = norm.exactly(2 * channels, "norm");
        to.qkv = qkv.exactly_or_none(3 * channels * channels, "qkv");
        to.qkv_bias = qkv_bias.exactly_or_none(3 * channels, "qkv_bias");
        to.dwconv = dwconv.exactly(3 * channels * 10, "dwconv");
        to.proj = proj.exactly_or_none(channels * channels, "proj");
        to.proj_bias = proj_bias.exactly_or_none(channels, "proj_bias");
        to.bias = bias.exactly(heads * side * side, "bias");
        to.log_scale = log_scale.exactly(heads, "log_scale");
    }
};

struct FfnGrads {
    Buffer in_transposed, out_transposed, norm, in, in_bias, out, out_bias;

    void fill(SwdaBackwardArgs& args, int64_t tile_rows) const {
        const int64_t channels = args.forward.channels, hidden = args.forward.ffn.hidden;
        const int64_t in_floats = filled(channels, tile_rows) * 2 * words(hidden, args.forward.bfloat16);
        const int64_t out_floats = filled(hidden, tile_rows) * words(channels, args.forward.bfloat16);
        args.transposed.in = in_transposed.exactly(in_floats, "in_transposed");
        args.transposed.out = out_transposed.exactly(out_floats, "out_transposed");
        FfnGradients& to = args.ffn;
        to.norm = norm.exactly(2 * channels, "norm");
        to.in = in.exactly_or_none(2 * hidden * channels, "in");
        to.in_bias = in_bias.exactly_or_none(2 * hidden, "in_bias");
        to.out = out.exactly_or_none(channels * hidden, "out");
        to.out_bias = out_bias.exactly_or_none(channels, "out_bias");
    }
};

// Gradients of swda_block, of swda_attention (no ffn) or of gated_ffn (no attention).
void swda_backward(const Image& grad_x, const Image& grad, const Image& x, const Attention* attention, const Ffn* ffn,
                   const AttentionGrads* attention_grads, const FfnGrads* ffn_grads, int64_t shift, bool bfloat16,
                   int64_t chunks, const Buffer& sums, const Buffer& scratch, int threads) {
    expect(attention || ffn, "one of attention and ffn must be given");
    expect(!attention == !attention_grads && !ffn == !ffn_grads, "gradients and weights go together");
    expect(attention || shift == 0, "the shift must be 0 without attention");
    expect(chunks >= 1, "chunks must be at least 1");
    SwdaBackwardArgs args{};
    args.forward = block_args(grad_x, x, attention, ffn, shift, bfloat16, threads);
    expect_same_shape(grad.view, x.view);
    args.grad = image(grad), args.chunks = chunks;
    const SwdaBlockArgs& of = args.forward;
    const BackwardLayout layout =
        backward_layout_of(of.channels, of.heads, of.window, of.ffn.hidden, bfloat16);
    const int64_t tile_rows = layout_of(of.channels, of.heads, of.window, of.ffn.hidden).tile_rows;
    if (attention) attention_grads->fill(args, tile_rows);
    if (ffn) ffn_grads->fill(args, tile_rows);
    args.sums = sums.at_least(chunks * layout.sums_floats, "sums");
    args.forward.scratch = scratch.at_least(threads * layout.scratch_floats, "scratch");
    const Kernels& chosen = kernels();
    py::gil_scoped_release unlocked;
    chosen.swda_backward(args);
}

void bind_gradients(py::module_& module) {
    py::class_<AttentionGrads>(module, "AttentionGrads", "AttentionGradients of csrc/block/swda_backward.h, and weights.")
        .def(py::init<Buffer, Buffer, Buffer, Buffer, Buffer, Buffer, Buffer, Buffer, Buffer, Buffer>(), py::kw_only(),
             py::arg("qkv_transposed"), py::arg("proj_transposed"), py::arg("norm"), py::arg("qkv"),
             py::arg("qkv_bias"), py::arg("dwconv"), py::arg("proj"), py::arg("proj_bias"), py::arg("bias"),
             py::arg("log_scale"));
    py::class_<FfnGrads>(module, "FfnGrads", "FfnGradients of csrc/block/swda_backward.h, and weights.")
        .def(py::init<Buffer, Buffer, Buffer, Buffer, Buffer, Buffer, Buffer>(), py::kw_only(),
             py::arg("in_transposed"), py::arg("out_transposed"), py::arg("norm"), py::arg("project_in"),
             py::arg("project_in_bias"), py::arg("project_out"), py::arg("project_out_bias"));
    module.def("swda_backward", &swda_backward, py::kw_only(), py::arg("grad_x"), py::arg("grad"), py::arg("x"),
               py::arg("attention").none(true), py::arg("ffn").none(true), py::arg("attention_grads").none(true),
               py::arg("ffn_grads").none(true), py::arg("shift"), py::arg("bfloat16"), py::arg("chunks"), py::arg("sums"),
               py::arg("scratch"), py::arg("threads"), "csrc/block/swda_backward.h");
    module.def(
        "swda_backward_layout",
        [](int64_t channels, int64_t heads, int64_t window, int64_t hidden, bool bfloat16) {
            const BackwardLayout layout = backward_layout_of(channels, heads, window, hidden, bfloat16);
            return std::make_tuple(layout.scratch_floats, layout.sums_floats);
        },
        py::arg("channels"), py::arg("heads"), py::arg("window"), py::arg("hidden"), py::arg("bfloat16"),
        "(scratch floats a thread, floats of the sums of a chunk)");
}

TileOrder tile_order(std::vector<int64_t> rows, std::vector<int64_t> columns, int64_t tile) {
    expect(tile >= 1 && !rows.empty() && rows.size() % tile == 0, "the tile must divide the rows");
    expect(!columns.empty(), "there must be a column");
    return {std::move(rows), std::move(columns), tile};
}

int64_t packed_floats(const TileOrder& order, bool bfloat16) {
    return order.rows.size() * words(order.columns.size(), bfloat16);
}

void pack(const Buffer& to, const Buffer& source, const TileOrder& order, bool bfloat16) {
    const int64_t last = *std::max_element(order.rows.begin(), order.rows.end()) +
                         *std::max_element(order.columns.begin(), order.columns.end());
    const float* from = source.at_least(last + 1, "source");
    float* packed = to.exactly(packed_floats(order, bfloat16), "to");
    py::gil_scoped_release unlocked;
    pack_tiles(order, from, bfloat16, packed);
}

void bind_packing(py::module_& module) {
    py::class_<TileOrder>(module, "TileOrder", "csrc/base/pack.h")
        .def(py::init(&tile_order), py::kw_only(), py::arg("rows"), py::arg("columns"), py::arg("tile"))
        .def("floats", &packed_floats, py::arg("bfloat16"), "Of a weight in this order.");
    module.def("pack", &pack, py::kw_only(), py::arg("to"), py::arg("source"), py::arg("order"), py::arg("bfloat16"),
               "csrc/base/pack.h");
}

void bind_weights(py::module_& module) {
    py::class_<Attention>(module, "Attention", "AttentionWeights of csrc/block/swda_block.h.")
        .def(py::init<Buffer, Buffer, Buffer, Buffer, Buffer, Buffer, Buffer, Buffer, Buffer, Buffer, int64_t,
                      int64_t>(),
             py::kw_only(), py::arg("norm_weight"), py::arg("norm_bias"), py::arg("qkv"), py::arg("qkv_bias"),
             py::arg("dwconv"), py::arg("dwconv_bias"), py::arg("proj"), py::arg("proj_bias"), py::arg("scale"),
             py::arg("bias"), py::arg("heads"), py::arg("window"));
    py::class_<Ffn>(module, "Ffn", "FfnWeights of csrc/block/swda_block.h.")
        .def(py::init<Buffer, Buffer, Buffer, Buffer, Buffer, Buffer, int64_t>(), py::kw_only(),
             py::arg("norm_weight"), py::arg("norm_bias"), py::arg("project_in"), py::arg("project_in_bias"),
             py::arg("project_out"), py::arg("project_out_bias"), py::arg("hidden"));
}

}  // namespace

void bind_block(py::module_& module) {
    bind_packing(module);
    bind_weights(module);
    bind_gradients(module);
    module.def("swda_block", &swda_block, py::kw_only(), py::arg("out"), py::arg("x"), py::arg("attention"),
               py::arg("ffn"), py::arg("shift"), py::arg("bfloat16"), py::arg("scratch"), py::arg("threads"),
               "csrc/block/swda_block.h");
    module.def("swda_attention", &swda_attention, py::kw_only(), py::arg("out"), py::arg("x"), py::arg("attention"),
               py::arg("shift"), py::arg("bfloat16"), py::arg("scratch"), py::arg("threads"),
               "csrc/block/swda_block.h");
    module.def("gated_ffn", &gated_ffn, py::kw_only(), py::arg("out"), py::arg("x"), py::arg("ffn"),
               py::arg("bfloat16"), py::arg("scratch"), py::arg("threads"), "csrc/block/swda_block.h");
    module.def(
        "swda_layout",
        [](int64_t channels, int64_t heads, int64_t window, int64_t hidden) {
            const Layout layout = layout_of(channels, heads, window, hidden);
            return std::make_tuple(layout.tile_rows, layout.scratch_floats, layout.bias_floats);
        },
        py::arg("channels"), py::arg("heads"), py::arg("window"), py::arg("hidden"),
        "(rows of a weight tile, scratch floats a thread, bias floats a head)");
    module.def("bias_index", &bias_index, py::arg("channels"), py::arg("heads"), py::arg("window"),
               "Entry of the (2w-1)^2 bias table at each place of SwdaLayoutArgs::bias_index.");
}

}  // namespace swk::python
