// Bindings of the denoiser's ops: ddim_step, GroupNorm and what follows it, 3x3 convolutions.
#include <algorithm>
#include <optional>

#include "../dispatch/dispatch.h"
#include "arguments.h"

namespace swk::python {
namespace {

void ddim_step(const View& out, const View& z, const View& pred, const std::optional<View>& fresh,
               const std::optional<View>& unconditional, float x0_from_z, float x0_from_pred, float out_from_x0,
               float out_from_z, float out_from_pred, float out_from_fresh, float clip, float guidance, int threads) {
    expect_threads(threads);
    expect_same_shape(out, z);
    expect_same_shape(out, pred);
    DdimStepArgs args{};
    args.rank = static_cast<int>(out.sizes.size());
    args.sizes = out.sizes.data();
    args.out = out.data, args.out_strides = out.strides.data();
    args.z = z.data, args.z_strides = z.strides.data();
    args.pred = pred.data, args.pred_strides = pred.strides.data();
    if (fresh) {
        expect_same_shape(out, *fresh);
        args.fresh = fresh->data, args.fresh_strides = fresh->strides.data();
    }
    if (unconditional) {
        expect_same_shape(out, *unconditional);
        args.unconditional = unconditional->data, args.unconditional_strides = unconditional->strides.data();
    }
    args.coefficients = {x0_from_z,     x0_from_pred,   out_from_x0, out_from_z,
                         out_from_pred, out_from_fresh, clip,        guidance};
    args.threads = threads;
    const Kernels& chosen = kernels();
    py::gil_scoped_release unlocked;
    chosen.ddim_step(args);
}

// ---- images and norms ------------------------------------------------------------------------------------------------

// (batch, channels, pixels) of an image whose rows of pixels follow one another.
PlaneStrides plane_strides(const View& image) {
    expect_image(image);
    const std::vector<int64_t>&sizes = image.sizes, &strides = image.strides;
    const bool flat = sizes[2] <= 1 || sizes[3] <= 1 || strides[2] == sizes[3] * strides[3];
    expect(flat, "an image's rows of pixels must follow one another");
    const int64_t pixel = sizes[3] > 1 ? strides[3] : strides[2];
    return {strides[0], strides[1], sizes[2] * sizes[3] > 1 ? pixel : 1};
}

void expect_planes_or_rows(std::initializer_list<PlaneStrides> images) {
    const auto in_planes = [](const PlaneStrides& image) { return image.pixel == 1; };
    const auto in_rows = [](const PlaneStrides& image) { return image.channel == 1; };
    expect(std::all_of(images.begin(), images.end(), in_planes) || std::all_of(images.begin(), images.end(), in_rows),
           "all images must lie in dense planes, or all in dense rows of channels");
}

RowStrides row_strides(const View& image) {
    expect_image(image);
    expect(image.strides[1] == 1 || image.sizes[1] <= 1, "a pixel's channels must be neighbours");
    return {image.strides[0], image.strides[2], image.strides[3]};
}

struct Norm {
    Buffer weight, bias, scale, shift;
    int64_t groups;
    float eps;

    GroupNormInput of(const View& x, const Buffer& scratch, int threads) const {
        expect_threads(threads);
        const PlaneStrides strides = plane_strides(x);
        const int64_t batch = x.sizes[0], channels = x.sizes[1], pixels = x.sizes[2] * x.sizes[3];
        expect(groups >= 1 && channels % groups == 0, "groups must divide the channels");
        const GroupNormWeights weights{
            weight.exactly_or_none(channels, "weight of the norm"), bias.exactly_or_none(channels, "bias of the norm"),
            scale.exactly_or_none(batch * channels, "scale"), shift.exactly_or_none(batch * channels, "shift")};
        float* const memory =
            scratch.at_least(group_norm_scratch(batch, channels, pixels, groups), "scratch of the norm");
        return {batch, channels, pixels, groups, x.data, strides, weights, eps, memory, threads};
    }
};

void group_norm_silu(const View& out, const View& x, const Norm& norm, const Buffer& scratch, int threads) {
    expect_same_shape(out, x);
    const GroupNormSiluArgs args{norm.of(x, scratch, threads), out.data, plane_strides(out)};
    expect_planes_or_rows({args.input.x_strides, args.out_strides});
    const Kernels& chosen = kernels();
    py::gil_scoped_release unlocked;
    chosen.group_norm_silu(args);
}

void group_norm_silu_backward(const View& grad_x, const View& grad, const View& x, const Norm& norm,
                              const Buffer& sums, const Buffer& norm_scratch, const Buffer& scratch, int threads) {
    expect_same_shape(grad_x, x);
    expect_same_shape(grad, x);
    GroupNormSiluBackwardArgs args{};
    args.input = norm.of(x, norm_scratch, threads);
    const int64_t batch = args.input.batch, channels = args.input.channels;
    args.grad_x = grad_x.data, args.grad_x_strides = plane_strides(grad_x);
    args.grad = grad.data, args.grad_strides = plane_strides(grad);
    expect_planes_or_rows({args.grad_x_strides, args.grad_strides, args.input.x_strides});
    args.sums = sums.exactly(batch * 2 * channels, "sums");
    args.scratch = scratch.at_least(group_norm_silu_backward_scratch(batch, channels, args.input.pixels), "scratch");
    const Kernels& chosen = kernels();
    py::gil_scoped_release unlocked;
    chosen.group_norm_silu_backward(args);
}

// ---- products --------------------------------------------------------------------------------------------------------

struct ConvLayout {
    int64_t panel = 0, scratch_floats = 0;
};

// height and width are those of the result
ConvLayout conv3x3_layout(int64_t batch, int64_t channels, int64_t height, int64_t width, int threads) {
    expect_threads(threads);
    ConvLayout layout;
    kernels().conv3x3_layout({batch, channels, height, width, threads, &layout.panel, &layout.scratch_floats});
    return layout;
}

// A product with each pixel's channels.
struct Linear {
    Buffer weight, bias;

    const float* packed(int64_t channels, int64_t out_channels, int64_t panel) const {
        return weight.exactly(filled(out_channels, panel) * channels, "weight of the product");
    }
};

struct Conv {
    Buffer weight, bias, embedding;

    // `scale`: the result's height and width over x's. Of pixels that come in equal pairs 9 of 16 points are left.
    // `shuffle`: out's height and width over the result's.
    Conv3x3 of(const View& out, const View& x, int scale, const Buffer& scratch, int threads, int shuffle = 1) const {
        Conv3x3 args{};
        args.x_strides = row_strides(x), args.out_strides = row_strides(out);
        for (const int dim : {0, 2, 3}) {
            expect(x.sizes[dim] * (dim ? scale * shuffle : 1) == out.sizes[dim], "x and out do not fit in shape");
        }
        args.batch = x.sizes[0], args.channels = x.sizes[1], args.out_channels = out.sizes[1] * shuffle * shuffle;
        args.height = x.sizes[2] * scale, args.width = x.sizes[3] * scale, args.shuffled = shuffle == 2;
        args.x = x.data, args.out = out.data, args.threads = threads;
        const ConvLayout layout = conv3x3_layout(args.batch, args.channels, args.height, args.width, threads);
        const int64_t points = scale == 2 ? 9 : 16, rows = filled(args.out_channels, layout.panel);
        args.weight = weight.exactly(rows * points * args.channels, "weight of the convolution");
        args.bias = bias.exactly_or_none(args.out_channels, "bias of the convolution");
        args.embedding = embedding.exactly_or_none(args.batch * args.out_channels, "embedding");
        args.scratch = scratch.at_least(layout.scratch_floats, "scratch of the convolution");
        return args;
    }
};

// out is dense, [batch][pixels][out channels].
void norm_projection(const View& out, const View& x, const Norm& norm, const Linear& linear,
                     const Buffer& norm_scratch, const Buffer& scratch, int threads) {
    NormProjectionArgs args{};
    args.norm = norm.of(x, norm_scratch, threads);
    const int64_t channels = args.norm.channels;
    expect(args.norm.x_strides.channel == 1 || channels <= 1, "a pixel's channels must be neighbours");
    const int64_t out_channels = out.sizes.empty() ? 0 : out.sizes.back();
    const std::vector<int64_t> sizes{args.norm.batch, args.norm.pixels, out_channels};
    const std::vector<int64_t> strides{sizes[1] * sizes[2], sizes[2], 1};
    expect(out.sizes == sizes && out.strides == strides, "out must be dense, a row for each pixel");
    args.out_channels = out_channels, args.out = out.data;
    const ConvLayout layout = conv3x3_layout(args.norm.batch, channels, x.sizes[2], x.sizes[3], threads);
    args.weight = linear.packed(channels, out_channels, layout.panel);
    args.bias = linear.bias.exactly_or_none(out_channels, "bias of the product");
    args.scratch = scratch.at_least(threads * normed_floats(channels), "scratch of the product");
    const Kernels& chosen = kernels();
    py::gil_scoped_release unlocked;
    chosen.norm_projection(args);
}

void norm_silu_conv3x3(const View& out, const View& x, const std::optional<View>& skip, const Norm& norm,
                       const Conv& conv, const Buffer& norm_scratch, const Buffer& conv_scratch, int threads) {
    NormSiluConv3x3Args args{norm.of(x, norm_scratch, threads), conv.of(out, x, 1, conv_scratch, threads)};
    if (skip) {
        expect_same_shape(out, *skip);
        args.conv.skip = skip->data, args.conv.skip_strides = row_strides(*skip);
    }
    const Kernels& chosen = kernels();
    py::gil_scoped_release unlocked;
    chosen.norm_silu_conv3x3(args);
}

// `hidden` [batch][pixels][hidden_channels], and `skip` [batch][pixels][out channels] for a shortcut, are scratch.
void res_block(const View& out, const View& x, const Norm& norm1, const Conv& conv1, const Norm& norm2,
               const Conv& conv2, const Linear* shortcut, int64_t hidden_channels, const Buffer& norm_scratch,
               const Buffer& conv_scratch, const Buffer& hidden, const Buffer& skip, int threads) {
    expect_image(out);
    const int64_t height = out.sizes[2], width = out.sizes[3], pixels = out.sizes[0] * height * width;
    const View middle{hidden.at_least(pixels * hidden_channels, "hidden"),
                      {out.sizes[0], hidden_channels, height, width},
                      {height * width * hidden_channels, 1, width * hidden_channels, hidden_channels}};
    ResBlockArgs args{{norm1.of(x, norm_scratch, threads), conv1.of(middle, x, 1, conv_scratch, threads)},
                      {norm2.of(middle, norm_scratch, threads), conv2.of(out, middle, 1, conv_scratch, threads)},
                      {}};
    RowStrides& x_strides = args.first.conv.x_strides;
    if (shortcut) {
        const int64_t channels = x.sizes[1], out_channels = out.sizes[1];
        const ConvLayout layout = conv3x3_layout(out.sizes[0], channels, height, width, threads);
        args.shortcut = {shortcut->packed(channels, out_channels, layout.panel),
                         shortcut->bias.exactly_or_none(out_channels, "bias of the shortcut"),
                         skip.at_least(pixels * out_channels, "skip")};
        if (width == 1) x_strides.column = x_strides.row;  // the pixels are addressed as one row
    } else {
        expect_same_shape(out, x);
        args.second.conv.skip = x.data, args.second.conv.skip_strides = x_strides;
    }
    const Kernels& chosen = kernels();
    py::gil_scoped_release unlocked;
    chosen.res_block(args);
}

void upsample_conv3x3(const View& out, const View& x, const Conv& conv, const Buffer& conv_scratch, int threads) {
    const UpsampleConv3x3Args args{conv.of(out, x, 2, conv_scratch, threads)};
    const Kernels& chosen = kernels();
    py::gil_scoped_release unlocked;
    chosen.upsample_conv3x3(args);
}

void conv3x3_shuffle(const View& out, const View& x, const Conv& conv, int shuffle, const Buffer& conv_scratch,
                     int threads) {
    expect(shuffle == 1 || shuffle == 2, "shuffle must be 1 or 2");
    const Conv3x3ShuffleArgs args{conv.of(out, x, 1, conv_scratch, threads, shuffle)};
    const Kernels& chosen = kernels();
    py::gil_scoped_release unlocked;
    chosen.conv3x3_shuffle(args);
}

void bind_weights(py::module_& module) {
    const auto none = [](const char* name) { return py::arg_v(name, py::none()); };
    py::class_<Norm>(module, "Norm", "GroupNormWeights of csrc/denoiser/group_norm.h, groups and eps.")
        .def(py::init<Buffer, Buffer, Buffer, Buffer, int64_t, float>(), py::kw_only(), none("weight"), none("bias"),
             none("scale"), none("shift"), py::arg("groups"), py::arg("eps"));
    py::class_<Conv>(module, "Conv", "Weights of a 3x3 convolution: Conv3x3 in csrc/denoiser/conv3x3.h.")
        .def(py::init<Buffer, Buffer, Buffer>(), py::kw_only(), py::arg("weight"), none("bias"), none("embedding"));
    py::class_<Linear>(module, "Linear", "Weights of a 1x1 convolution: (panels, channels, panel width) and a bias.")
        .def(py::init<Buffer, Buffer>(), py::kw_only(), py::arg("weight"), none("bias"));
}

void bind_sizes(py::module_& module) {
    module.def("group_norm_scratch", &group_norm_scratch, py::arg("batch"), py::arg("channels"), py::arg("pixels"),
               py::arg("groups"), "Floats of scratch that a norm takes.");
    module.def("group_norm_silu_backward_scratch", &group_norm_silu_backward_scratch, py::arg("batch"),
               py::arg("channels"), py::arg("pixels"), "Floats of scratch that it takes beside the norm's.");
    module.def(
        "conv3x3_layout",
        [](int64_t batch, int64_t channels, int64_t height, int64_t width, int threads) {
            const ConvLayout layout = conv3x3_layout(batch, channels, height, width, threads);
            return std::make_tuple(layout.panel, layout.scratch_floats);
        },
        py::arg("batch"), py::arg("channels"), py::arg("height"), py::arg("width"), py::arg("threads"),
        "(width of a weight panel, scratch floats)");
    module.def("normed_floats", &normed_floats, py::arg("channels"), "Floats of scratch for each thread.");
}

}  // namespace

void bind_denoiser(py::module_& module) {
    bind_weights(module);
    bind_sizes(module);
    module.def("conv3x3_shuffle", &conv3x3_shuffle, py::kw_only(), py::arg("out"), py::arg("x"), py::arg("conv"),
               py::arg("shuffle"), py::arg("conv_scratch"), py::arg("threads"), "csrc/denoiser/conv3x3_shuffle.h");
    module.def("ddim_step", &ddim_step, py::kw_only(), py::arg("out"), py::arg("z"), py::arg("pred"), py::arg("fresh"),
               py::arg("unconditional"), py::arg("x0_from_z"), py::arg("x0_from_pred"), py::arg("out_from_x0"),
               py::arg("out_from_z"), py::arg("out_from_pred"), py::arg("out_from_fresh"), py::arg("clip"),
               py::arg("guidance"), py::arg("threads"), "csrc/denoiser/ddim_step.h");
    module.def("group_norm_silu", &group_norm_silu, py::kw_only(), py::arg("out"), py::arg("x"), py::arg("norm"),
               py::arg("scratch"), py::arg("threads"), "csrc/denoiser/group_norm_silu.h");
    module.def("group_norm_silu_backward", &group_norm_silu_backward, py::kw_only(), py::arg("grad_x"),
               py::arg("grad"), py::arg("x"), py::arg("norm"), py::arg("sums"), py::arg("norm_scratch"),
               py::arg("scratch"), py::arg("threads"), "csrc/denoiser/group_norm_silu.h");
    module.def("norm_projection", &norm_projection, py::kw_only(), py::arg("out"), py::arg("x"), py::arg("norm"),
               py::arg("linear"), py::arg("norm_scratch"), py::arg("scratch"), py::arg("threads"),
               "csrc/denoiser/norm_projection.h");
    module.def("norm_silu_conv3x3", &norm_silu_conv3x3, py::kw_only(), py::arg("out"), py::arg("x"), py::arg("skip"),
               py::arg("norm"), py::arg("conv"), py::arg("norm_scratch"), py::arg("conv_scratch"), py::arg("threads"),
               "csrc/denoiser/norm_silu_conv3x3.h");
    module.def("res_block", &res_block, py::kw_only(), py::arg("out"), py::arg("x"), py::arg("norm1"),
               py::arg("conv1"), py::arg("norm2"), py::arg("conv2"), py::arg("shortcut"), py::arg("hidden_channels"),
               py::arg("norm_scratch"), py::arg("conv_scratch"), py::arg("hidden"), py::arg("skip"),
               py::arg("threads"), "csrc/denoiser/res_block.h");
    module.def("upsample_conv3x3", &upsample_conv3x3, py::kw_only(), py::arg("out"), py::arg("x"), py::arg("conv"),
               py::arg("conv_scratch"), py::arg("threads"), "csrc/denoiser/upsample_conv3x3.h");
}

}  // namespace swk::python
