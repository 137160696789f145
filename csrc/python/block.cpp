// Bindings of the block: swda_block, its halves, and swda_core, which training runs.
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

int64_t core_scratch(int64_t channels, int64_t heads, int64_t window) {
    int64_t floats = 0;
    kernels().swda_core_layout({channels, heads, window, &floats});
    return floats;
}

std::vector<int64_t> bias_index(int64_t channels, int64_t heads, int64_t window) {
    Layout layout = layout_of(channels, heads, window, 0);
    std::vector<int64_t> index(layout.bias_floats);
    kernels().swda_layout({channels, heads, window, 0, &layout.tile_rows, &layout.scratch_floats, &layout.bias_floats,
                           index.data()});
    return index;
}

// Weights between the two projections of the attention, and the sizes that their layout depends on.
struct Core {
    Buffer dwconv, dwconv_bias, scale, bias;
    int64_t heads, window;

    // Rows of the tiles of qkv.
    int64_t rows(int64_t channels, const Layout& layout) const {
        return 2 * heads * filled(3 * (channels / 2 / heads), layout.tile_rows);
    }

    void expect_fit(const std::vector<int64_t>& shape, int64_t shift) const {
        expect(heads >= 1 && shape[1] % (2 * heads) == 0, "twice the heads must divide the channels");
        expect(window >= 1 && shape[2] % window == 0 && shape[3] % window == 0, "the window must divide the sides");
        expect(shift >= 0 && shift < window, "the shift must be at least 0 and below the window");
    }

    void fill(AttentionWeights& to, int64_t channels, const Layout& layout) const {
        const int64_t count = rows(channels, layout);
        to.dwconv = dwconv.exactly(count * 9, "dwconv");
        to.dwconv_bias = dwconv_bias.exactly(count, "dwconv_bias");
        to.scale = scale.exactly(heads, "scale");
        to.bias = bias.exactly(heads * layout.bias_floats, "bias");
    }
};

// Words of four bytes for the weights of `depth` input channels of an output channel.
int64_t words(int64_t depth, bool bfloat16) { return bfloat16 ? (depth + 1) / 2 : depth; }

struct Attention {
    Buffer norm_weight, norm_bias, qkv, qkv_bias, proj, proj_bias;
    Core core;

    void fill(AttentionWeights& to, int64_t channels, const Layout& layout, bool bfloat16) const {
        core.fill(to, channels, layout);
        const int64_t rows = core.rows(channels, layout), out_rows = filled(channels, layout.tile_rows);
        const int64_t depth = words(channels, bfloat16);
        to.norm_weight = norm_weight.exactly(channels, "norm_weight");
        to.norm_bias = norm_bias.exactly(channels, "norm_bias");
        to.qkv = {qkv.exactly(rows * depth, "qkv"), qkv_bias.exactly(rows, "qkv_bias")};
        to.proj = {proj.exactly(out_rows * depth, "proj"), proj_bias.exactly(out_rows, "proj_bias")};
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

// One call of swda_block, of swda_attention (no ffn) or of gated_ffn (no attention).
void run(Op op, const Image& out, const Image& x, const Attention* attention, const Ffn* ffn, int64_t shift,
         bool bfloat16, const Buffer& scratch, int threads) {
    expect_threads(threads);
    SwdaBlockArgs args{};
    args.x = image(x), args.out = image(out), args.bfloat16 = bfloat16, args.threads = threads;
    expect_same_shape(out.view, x.view);
    const std::vector<int64_t>& shape = x.view.sizes;
    args.batch = shape[0], args.channels = shape[1], args.height = shape[2], args.width = shape[3];
    if (attention) {
        attention->core.expect_fit(shape, shift);
        args.heads = attention->core.heads, args.window = attention->core.window, args.shift = shift;
    }
    if (ffn) expect((args.ffn.hidden = ffn->hidden) >= 1, "hidden must be at least 1");
    const Layout layout = layout_of(args.channels, args.heads, args.window, args.ffn.hidden);
    if (attention) attention->fill(args.attention, args.channels, layout, bfloat16);
    if (ffn) ffn->fill(args.ffn, args.channels, layout, bfloat16);
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

// The arguments that swda_core and its gradient share.
SwdaCoreArgs core_args(const View& qkv, const View& attended, const Core& core, int64_t shift, bool last_row,
                       bool last_column, const Buffer& scratch, int threads) {
    expect_threads(threads);
    SwdaCoreArgs args{};
    args.qkv = image(qkv), args.attended = image(attended), args.threads = threads;
    const std::vector<int64_t>& shape = attended.sizes;
    expect(qkv.sizes == std::vector<int64_t>{shape[0], 3 * shape[1], shape[2], shape[3]},
           "qkv must have the shape of attended, with three times the channels");
    core.expect_fit(shape, shift);
    args.batch = shape[0], args.channels = shape[1], args.height = shape[2], args.width = shape[3];
    args.heads = core.heads, args.window = core.window, args.shift = shift;
    args.last_row = last_row, args.last_column = last_column;
    core.fill(args.weights, args.channels, layout_of(args.channels, args.heads, args.window, 0));
    args.scratch = scratch.at_least(threads * core_scratch(args.channels, args.heads, args.window), "scratch");
    return args;
}

void swda_core(const View& qkv, const View& attended, const Core& core, int64_t shift, bool last_row, bool last_column,
               const Buffer& scratch, int threads) {
    const SwdaCoreArgs args = core_args(qkv, attended, core, shift, last_row, last_column, scratch, threads);
    const Kernels& chosen = kernels();
    py::gil_scoped_release unlocked;
    chosen.swda_core(args);
}

void swda_core_backward(const View& qkv, const View& grad_attended, const View& grad_qkv, const Buffer& grad_dwconv,
                        const Buffer& grad_bias, const Buffer& grad_log_scale, const Core& core, int64_t shift,
                        bool last_row, bool last_column, const Buffer& scratch, int threads) {
    SwdaCoreArgs args = core_args(qkv, grad_attended, core, shift, last_row, last_column, scratch, threads);
    expect_same_shape(grad_qkv, qkv);
    args.grad_qkv = image(grad_qkv);
    const int64_t windows = args.batch * (args.height / args.window) * (args.width / args.window);
    const int64_t size = args.channels / 2 / args.heads, table = (2 * args.window - 1) * (2 * args.window - 1);
    args.grad_dwconv = grad_dwconv.exactly(windows * 2 * args.heads * 3 * size * 10, "grad_dwconv");
    args.grad_bias = grad_bias.exactly(windows * args.heads * table, "grad_bias");
    args.grad_log_scale = grad_log_scale.exactly(windows * args.heads, "grad_log_scale");
    const Kernels& chosen = kernels();
    py::gil_scoped_release unlocked;
    chosen.swda_core_backward(args);
}

void bind_weights(py::module_& module) {
    py::class_<Core>(module, "Core", "dwconv, dwconv_bias, scale and bias of AttentionWeights in csrc/block/swda_block.h.")
        .def(py::init<Buffer, Buffer, Buffer, Buffer, int64_t, int64_t>(), py::kw_only(), py::arg("dwconv"),
             py::arg("dwconv_bias"), py::arg("scale"), py::arg("bias"), py::arg("heads"), py::arg("window"));
    py::class_<Attention>(module, "Attention", "AttentionWeights of csrc/block/swda_block.h.")
        .def(py::init<Buffer, Buffer, Buffer, Buffer, Buffer, Buffer, const Core&>(), py::kw_only(),
             py::arg("norm_weight"), py::arg("norm_bias"), py::arg("qkv"), py::arg("qkv_bias"), py::arg("proj"),
             py::arg("proj_bias"), py::arg("core"));
    py::class_<Ffn>(module, "Ffn", "FfnWeights of csrc/block/swda_block.h.")
        .def(py::init<Buffer, Buffer, Buffer, Buffer, Buffer, Buffer, int64_t>(), py::kw_only(),
             py::arg("norm_weight"), py::arg("norm_bias"), py::arg("project_in"), py::arg("project_in_bias"),
             py::arg("project_out"), py::arg("project_out_bias"), py::arg("hidden"));
}

}  // namespace

void bind_block(py::module_& module) {
    bind_weights(module);
    module.def("swda_block", &swda_block, py::kw_only(), py::arg("out"), py::arg("x"), py::arg("attention"),
               py::arg("ffn"), py::arg("shift"), py::arg("bfloat16"), py::arg("scratch"), py::arg("threads"),
               "csrc/block/swda_block.h");
    module.def("swda_attention", &swda_attention, py::kw_only(), py::arg("out"), py::arg("x"), py::arg("attention"),
               py::arg("shift"), py::arg("bfloat16"), py::arg("scratch"), py::arg("threads"),
               "csrc/block/swda_block.h");
    module.def("gated_ffn", &gated_ffn, py::kw_only(), py::arg("out"), py::arg("x"), py::arg("ffn"),
               py::arg("bfloat16"), py::arg("scratch"), py::arg("threads"), "csrc/block/swda_block.h");
    module.def("swda_core", &swda_core, py::kw_only(), py::arg("qkv"), py::arg("attended"), py::arg("core"),
               py::arg("shift"), py::arg("last_row"), py::arg("last_column"), py::arg("scratch"), py::arg("threads"),
               "csrc/block/swda_core.h");
    module.def("swda_core_backward", &swda_core_backward, py::kw_only(), py::arg("qkv"), py::arg("grad_attended"),
               py::arg("grad_qkv"), py::arg("grad_dwconv"), py::arg("grad_bias"), py::arg("grad_log_scale"),
               py::arg("core"), py::arg("shift"), py::arg("last_row"), py::arg("last_column"), py::arg("scratch"),
               py::arg("threads"), "csrc/block/swda_core.h");
    module.def("swda_core_scratch", &core_scratch, py::arg("channels"), py::arg("heads"), py::arg("window"),
               "Scratch floats for each thread of swda_core.");
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
