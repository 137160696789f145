// Python binding: the only native file that knows Python. It turns (pointer, sizes, strides) tuples into argument
// structs, checks that they agree, and lets go of the GIL while the kernel runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <algorithm>
#include <optional>
#include <vector>

#include "../base/dispatch.h"
#include "../base/elementwise.h"
#include "../base/parallel.h"
#include "../base/peak.h"

namespace py = pybind11;

namespace {

// A tensor as Python hands it over: (data_ptr, shape, strides), strides in elements.
template <class T>
struct View {
    T* data = nullptr;
    std::vector<int64_t> sizes, strides;

    View() = default;

    explicit View(const py::tuple& tensor) {
        if (tensor.size() != 3) throw py::type_error("a tensor is passed as (data_ptr, shape, strides)");
        data = reinterpret_cast<T*>(tensor[0].cast<uintptr_t>());
        sizes = tensor[1].cast<std::vector<int64_t>>();
        strides = tensor[2].cast<std::vector<int64_t>>();
        if (sizes.size() != strides.size()) throw py::value_error("a tensor needs one stride for each size");
        if (sizes.size() > swk::kMaxRank) throw py::value_error("a tensor may have at most 64 dimensions");
    }
};

using Output = View<float>;
using Input = View<const float>;

template <class A, class B>
void expect_same_shape(const A& a, const B& b) {
    if (a.sizes != b.sizes) throw py::value_error("the tensors differ in shape");
}

void ddim_step(const py::tuple& out_view, const py::tuple& z_view, const py::tuple& pred_view,
               const std::optional<py::tuple>& fresh_view, const std::optional<py::tuple>& unconditional_view,
               const std::vector<float>& coefficients, int threads) {
    const Output out(out_view);
    const Input z(z_view), pred(pred_view);
    expect_same_shape(out, z);
    expect_same_shape(out, pred);
    if (coefficients.size() != 8) throw py::value_error("ddim_step takes eight coefficients");

    swk::DdimStepArgs args{};
    args.rank = static_cast<int>(out.sizes.size());
    args.sizes = out.sizes.data();
    args.out = out.data, args.out_strides = out.strides.data();
    args.z = z.data, args.z_strides = z.strides.data();
    args.pred = pred.data, args.pred_strides = pred.strides.data();
    std::optional<Input> fresh, unconditional;
    if (fresh_view) {
        fresh.emplace(*fresh_view);
        expect_same_shape(out, *fresh);
        args.fresh = fresh->data, args.fresh_strides = fresh->strides.data();
    }
    if (unconditional_view) {
        unconditional.emplace(*unconditional_view);
        expect_same_shape(out, *unconditional);
        args.unconditional = unconditional->data, args.unconditional_strides = unconditional->strides.data();
    }
    const auto& c = coefficients;
    args.coefficients = {c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]};
    args.threads = threads;
    const swk::Kernels& kernels = swk::kernels();

    py::gil_scoped_release unlocked;
    kernels.ddim_step(args);
}

// (batch, channels, pixels) of a tensor of four dimensions whose rows of pixels follow one another.
swk::PlaneStrides plane_strides(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
    if (sizes.size() != 4) throw py::value_error("an image has four dimensions");
    const bool flat = sizes[2] <= 1 || sizes[3] <= 1 || strides[2] == sizes[3] * strides[3];
    if (!flat) throw py::value_error("an image's rows of pixels must follow one another");
    const int64_t pixel = sizes[3] > 1 ? strides[3] : strides[2];
    return {strides[0], strides[1], sizes[2] * sizes[3] > 1 ? pixel : 1};
}

void expect_planes_or_rows(const swk::PlaneStrides& a, const swk::PlaneStrides& b) {
    if ((a.channel != 1 || b.channel != 1) && (a.pixel != 1 || b.pixel != 1)) {
        throw py::value_error("both images must lie in dense planes, or both in dense rows of channels");
    }
}

// Optional dense tensors [count], in the order of the struct's fields.
swk::GroupNormWeights group_norm_weights(const std::vector<uintptr_t>& addresses) {
    if (addresses.size() != 4) throw py::value_error("a norm has four addresses: weight, bias, scale, shift; 0 for none");
    const auto at = [&](int i) { return reinterpret_cast<const float*>(addresses[i]); };
    return {at(0), at(1), at(2), at(3)};
}

swk::GroupNormInput norm_input(const Input& x, const std::vector<uintptr_t>& norm, int64_t groups, float eps,
                               uintptr_t scratch, int threads) {
    const swk::PlaneStrides strides = plane_strides(x.sizes, x.strides);
    return {x.sizes[0], x.sizes[1], x.sizes[2] * x.sizes[3], groups, x.data, strides, group_norm_weights(norm), eps,
            reinterpret_cast<float*>(scratch), threads};
}

void group_norm_silu(const py::tuple& out_view, const py::tuple& x_view, const std::vector<uintptr_t>& norm,
                     int64_t groups, float eps, uintptr_t scratch, int threads) {
    const Output out(out_view);
    const Input x(x_view);
    expect_same_shape(out, x);
    swk::GroupNormSiluArgs args{};
    args.out = out.data, args.out_strides = plane_strides(out.sizes, out.strides);
    args.input = norm_input(x, norm, groups, eps, scratch, threads);
    expect_planes_or_rows(args.input.x_strides, args.out_strides);
    const swk::Kernels& kernels = swk::kernels();
    py::gil_scoped_release unlocked;
    kernels.group_norm_silu(args);
}

// memory: addresses of sums [batch][2][channels], and of scratch of the norm and of the backward.
void group_norm_silu_backward(const py::tuple& grad_x_view, const py::tuple& grad_view, const py::tuple& x_view,
                              const std::vector<uintptr_t>& norm, int64_t groups, float eps,
                              const std::vector<uintptr_t>& memory, int threads) {
    const Output grad_x(grad_x_view);
    const Input grad(grad_view), x(x_view);
    expect_same_shape(grad_x, x);
    expect_same_shape(grad, x);
    if (memory.size() != 3) throw py::value_error("memory is (sums, scratch of the norm, scratch of the backward)");
    swk::GroupNormSiluBackwardArgs args{};
    args.grad_x = grad_x.data, args.grad_x_strides = plane_strides(grad_x.sizes, grad_x.strides);
    args.grad = grad.data, args.grad_strides = plane_strides(grad.sizes, grad.strides);
    args.sums = reinterpret_cast<float*>(memory[0]), args.scratch = reinterpret_cast<float*>(memory[2]);
    args.input = norm_input(x, norm, groups, eps, memory[1], threads);
    const swk::PlaneStrides &a = args.grad_x_strides, &b = args.grad_strides, &c = args.input.x_strides;
    if ((a.channel != 1 || b.channel != 1 || c.channel != 1) && (a.pixel != 1 || b.pixel != 1 || c.pixel != 1)) {
        throw py::value_error("all images must lie in dense planes, or all in dense rows of channels");
    }
    const swk::Kernels& kernels = swk::kernels();
    py::gil_scoped_release unlocked;
    kernels.group_norm_silu_backward(args);
}

// out is dense, [batch][pixels][out channels]; scratch: of the norm, of normed pixels.
void norm_projection(const py::tuple& out_view, const py::tuple& x_view, const std::vector<uintptr_t>& norm,
                     const std::vector<uintptr_t>& linear, int64_t groups, float eps,
                     const std::vector<uintptr_t>& scratch, int threads) {
    const Output out(out_view);
    const Input x(x_view);
    if (linear.size() != 2 || scratch.size() != 2) throw py::value_error("linear and scratch are two addresses each");
    swk::NormProjectionArgs args{};
    args.norm = norm_input(x, norm, groups, eps, scratch[0], threads);
    if (args.norm.x_strides.channel != 1 && args.norm.channels > 1) {
        throw py::value_error("a pixel's channels must be neighbours");
    }
    const std::vector<int64_t> sizes{args.norm.batch, args.norm.pixels, out.sizes.back()};
    const std::vector<int64_t> strides{sizes[1] * sizes[2], sizes[2], 1};
    if (out.sizes != sizes || out.strides != strides) throw py::value_error("out must be dense, a row for each pixel");
    args.out_channels = sizes[2], args.out = out.data;
    args.weight = reinterpret_cast<const float*>(linear[0]), args.bias = reinterpret_cast<const float*>(linear[1]);
    args.scratch = reinterpret_cast<float*>(scratch[1]);
    const swk::Kernels& kernels = swk::kernels();
    py::gil_scoped_release unlocked;
    kernels.norm_projection(args);
}

template <class T>
swk::RowStrides row_strides(const T& tensor) {
    if (tensor.sizes.size() != 4) throw py::value_error("an image has four dimensions");
    if (tensor.strides[1] != 1 && tensor.sizes[1] > 1) throw py::value_error("a pixel's channels must be neighbours");
    return {tensor.strides[0], tensor.strides[2], tensor.strides[3]};
}

// (width of a weight panel, scratch floats); height and width are those of the result
std::tuple<int64_t, int64_t> conv3x3_layout(int64_t batch, int64_t channels, int64_t height, int64_t width,
                                            int threads) {
    int64_t panel = 0, scratch = 0;
    swk::kernels().conv3x3_layout({batch, channels, height, width, threads, &panel, &scratch});
    return {panel, scratch};
}

// conv: addresses of weight, bias and embedding, 0 for none. `scale`: out's height and width over x's.
swk::Conv3x3 conv3x3(const Output& out, const Input& x, const std::vector<uintptr_t>& conv, int scale,
                     uintptr_t scratch, int threads) {
    if (conv.size() != 3) throw py::value_error("conv is (weight, bias, embedding)");
    const swk::RowStrides x_strides = row_strides(x), out_strides = row_strides(out);
    for (const int dim : {0, 2, 3}) {
        if (x.sizes[dim] * (dim ? scale : 1) != out.sizes[dim]) throw py::value_error("x and out do not fit in shape");
    }
    swk::Conv3x3 args{};
    args.batch = x.sizes[0], args.channels = x.sizes[1], args.out_channels = out.sizes[1];
    args.height = out.sizes[2], args.width = out.sizes[3];
    args.x = x.data, args.x_strides = x_strides, args.out = out.data, args.out_strides = out_strides;
    const auto at = [&](int i) { return reinterpret_cast<const float*>(conv[i]); };
    args.weight = at(0), args.bias = at(1), args.embedding = at(2);
    args.scratch = reinterpret_cast<float*>(scratch), args.threads = threads;
    return args;
}

void norm_silu_conv3x3(const py::tuple& out_view, const py::tuple& x_view, const std::optional<py::tuple>& skip_view,
                       const std::vector<uintptr_t>& norm, const std::vector<uintptr_t>& conv, int64_t groups,
                       float eps, const std::vector<uintptr_t>& scratch, int threads) {
    const Output out(out_view);
    const Input x(x_view);
    if (scratch.size() != 2) throw py::value_error("scratch is (of the norm, of the product)");
    swk::NormSiluConv3x3Args args{{}, conv3x3(out, x, conv, 1, scratch[1], threads)};
    args.norm = norm_input(x, norm, groups, eps, scratch[0], threads);
    if (skip_view) {
        const Input skip(*skip_view);
        expect_same_shape(out, skip);
        args.conv.skip = skip.data, args.conv.skip_strides = row_strides(skip);
    }
    const swk::Kernels& kernels = swk::kernels();
    py::gil_scoped_release unlocked;
    kernels.norm_silu_conv3x3(args);
}

// An image in rows of channels in scratch memory, with the batch and sides of another.
template <class T>
View<T> in_scratch(uintptr_t address, int64_t channels, const std::vector<int64_t>& like) {
    View<T> image;
    image.data = reinterpret_cast<T*>(address);
    image.sizes = {like[0], channels, like[2], like[3]};
    image.strides = {like[2] * like[3] * channels, 1, like[3] * channels, channels};
    return image;
}

// norms: addresses of two norms; convs: of weight, bias and embedding of the first convolution, weight, bias and 0 of
// the second, weight and bias of the shortcut; scratch: of norm, product, hidden image, skip.
void res_block(const py::tuple& out_view, const py::tuple& x_view, const std::vector<std::vector<uintptr_t>>& norms,
               const std::vector<std::vector<uintptr_t>>& convs, const std::vector<int64_t>& sizes,
               const std::vector<float>& eps, const std::vector<uintptr_t>& scratch, int threads) {
    if (norms.size() != 2 || sizes.size() != 3 || eps.size() != 2) {
        throw py::value_error("a res block has two norms, two eps, and sizes (groups of each, hidden channels)");
    }
    if (convs.size() != 3 || convs[2].size() != 2) throw py::value_error("convs are (first, second, shortcut)");
    if (scratch.size() != 4) throw py::value_error("scratch is (of the norm, of the product, hidden image, skip)");
    const Output out(out_view);
    const Input x(x_view);
    if (out.sizes.size() != 4) throw py::value_error("an image has four dimensions");
    const auto hidden = in_scratch<float>(scratch[2], sizes[2], out.sizes);
    const auto again = in_scratch<const float>(scratch[2], sizes[2], out.sizes);
    swk::ResBlockArgs args{{{}, conv3x3(hidden, x, convs[0], 1, scratch[1], threads)},
                           {{}, conv3x3(out, again, convs[1], 1, scratch[1], threads)}, {}};
    args.first.norm = norm_input(x, norms[0], sizes[0], eps[0], scratch[0], threads);
    args.second.norm = norm_input(again, norms[1], sizes[1], eps[1], scratch[0], threads);
    if (convs[2][0]) {
        args.shortcut = {reinterpret_cast<const float*>(convs[2][0]), reinterpret_cast<const float*>(convs[2][1]),
                         reinterpret_cast<float*>(scratch[3])};
        const swk::RowStrides& x_strides = args.first.conv.x_strides;
        if (x.sizes[2] > 1 && x.sizes[3] > 1 && x_strides.row != x.sizes[3] * x_strides.column) {
            throw py::value_error("x's rows of pixels must follow one another");
        }
        if (x.sizes[3] == 1) args.first.conv.x_strides.column = x_strides.row;
    } else {
        expect_same_shape(out, x);
        args.second.conv.skip = x.data, args.second.conv.skip_strides = args.first.conv.x_strides;
    }
    const swk::Kernels& kernels = swk::kernels();
    py::gil_scoped_release unlocked;
    kernels.res_block(args);
}

void upsample_conv3x3(const py::tuple& out_view, const py::tuple& x_view, const std::vector<uintptr_t>& conv,
                      uintptr_t scratch, int threads) {
    const swk::UpsampleConv3x3Args args{conv3x3(Output(out_view), Input(x_view), conv, 2, scratch, threads)};
    const swk::Kernels& kernels = swk::kernels();
    py::gil_scoped_release unlocked;
    kernels.upsample_conv3x3(args);
}

swk::ImageView image(const py::tuple& view) {
    const Output tensor(view);
    if (tensor.sizes.size() != 4) throw py::value_error("an image has four dimensions");
    const auto& stride = tensor.strides;
    return {tensor.data, stride[0], stride[1], stride[2], stride[3]};
}

// Reads (data_ptr, floats) of dense float32 tensors one after the other, and checks their sizes.
class Dense {
public:
    explicit Dense(const std::vector<std::pair<uintptr_t, int64_t>>& tensors) : tensors_(tensors) {}

    const float* take(int64_t floats) {
        if (next_ >= tensors_.size()) throw py::value_error("the packed weights are too few");
        const auto [address, size] = tensors_[next_++];
        if (size != floats) throw py::value_error("packed weights have the wrong size");
        return reinterpret_cast<const float*>(address);
    }

    swk::TiledMatrix take_tiled(int64_t rows, int64_t depth) {
        const float* weight = take(rows * depth);
        return {weight, take(rows)};
    }

private:
    const std::vector<std::pair<uintptr_t, int64_t>>& tensors_;
    size_t next_ = 0;
};

using DenseList = std::vector<std::pair<uintptr_t, int64_t>>;

struct Layout {
    int64_t tile_rows = 0, scratch_floats = 0, bias_floats = 0;
};

Layout layout_of(int64_t channels, int64_t heads, int64_t window, int64_t hidden) {
    Layout layout;
    swk::kernels().swda_layout({channels, heads, window, hidden, &layout.tile_rows, &layout.scratch_floats,
                                &layout.bias_floats, nullptr});
    return layout;
}

int64_t in_tiles(int64_t rows, int64_t tile) { return (rows + tile - 1) / tile * tile; }

// What one call of swda_block, swda_attention (no ffn) or gated_ffn (no attention) takes.
swk::SwdaBlockArgs block_args(const py::tuple& out, const py::tuple& x, const DenseList& attention,
                              const DenseList& ffn, const std::vector<int64_t>& sizes, const DenseList& scratch,
                              int threads) {
    if (sizes.size() != 4) throw py::value_error("sizes are (heads, window, shift, hidden)");
    const std::vector<int64_t> shape = x[1].cast<std::vector<int64_t>>();
    if (shape.size() != 4 || shape != out[1].cast<std::vector<int64_t>>()) {
        throw py::value_error("x and out must be four-dimensional and of one shape");
    }
    swk::SwdaBlockArgs args{};
    args.batch = shape[0], args.channels = shape[1], args.height = shape[2], args.width = shape[3];
    args.heads = sizes[0], args.window = sizes[1], args.shift = sizes[2], args.ffn.hidden = sizes[3];
    args.x = image(x), args.out = image(out), args.threads = threads;
    const int64_t c = args.channels;
    const Layout layout = layout_of(c, args.heads, args.window, args.ffn.hidden);
    if (args.heads) {
        const int64_t rows = 2 * args.heads * in_tiles(3 * (c / 2 / args.heads), layout.tile_rows);
        Dense list(attention);
        swk::AttentionWeights& to = args.attention;
        to.norm_weight = list.take(c), to.norm_bias = list.take(c);
        to.qkv = list.take_tiled(rows, c);
        to.dwconv = list.take(rows * 9), to.dwconv_bias = list.take(rows);
        to.proj = list.take_tiled(in_tiles(c, layout.tile_rows), c);
        to.scale = list.take(args.heads), to.bias = list.take(args.heads * layout.bias_floats);
    }
    if (args.ffn.hidden) {
        Dense list(ffn);
        args.ffn.norm_weight = list.take(c), args.ffn.norm_bias = list.take(c);
        args.ffn.in = list.take_tiled(2 * in_tiles(args.ffn.hidden, layout.tile_rows / 2), c);
        args.ffn.out = list.take_tiled(in_tiles(c, layout.tile_rows), args.ffn.hidden);
    }
    args.scratch = const_cast<float*>(Dense(scratch).take(threads * layout.scratch_floats));
    return args;
}

template <void (*swk::Kernels::*Op)(const swk::SwdaBlockArgs&)>
void run_block(const py::tuple& out, const py::tuple& x, const DenseList& attention, const DenseList& ffn,
               const std::vector<int64_t>& sizes, const DenseList& scratch, int threads) {
    const swk::SwdaBlockArgs args = block_args(out, x, attention, ffn, sizes, scratch, threads);
    const swk::Kernels& kernels = swk::kernels();
    py::gil_scoped_release unlocked;
    (kernels.*Op)(args);
}

// (rows of a tile, scratch floats for each thread, bias floats for each head)
std::tuple<int64_t, int64_t, int64_t> swda_layout(int64_t channels, int64_t heads, int64_t window, int64_t hidden) {
    const Layout layout = layout_of(channels, heads, window, hidden);
    return {layout.tile_rows, layout.scratch_floats, layout.bias_floats};
}

int64_t swda_core_scratch(int64_t channels, int64_t heads, int64_t window) {
    int64_t floats = 0;
    swk::kernels().swda_core_layout({channels, heads, window, &floats});
    return floats;
}

// swda_core where `grads` is empty, else swda_core_backward: its three outputs for dwconv, bias and scale.
void swda_core(const py::tuple& qkv, const py::tuple& attended, const std::optional<py::tuple>& grad_qkv,
               const DenseList& weights, const DenseList& grads, const std::vector<int64_t>& sizes,
               const DenseList& scratch, int threads) {
    if (sizes.size() != 5) throw py::value_error("sizes are (heads, window, shift, last_row, last_column)");
    const auto wide = qkv[1].cast<std::vector<int64_t>>(), shape = attended[1].cast<std::vector<int64_t>>();
    if (shape.size() != 4 || wide != std::vector<int64_t>{shape[0], 3 * shape[1], shape[2], shape[3]}) {
        throw py::value_error("qkv must have the shape of attended, with three times the channels");
    }
    if (grad_qkv && (*grad_qkv)[1].cast<std::vector<int64_t>>() != wide) throw py::value_error("grad_qkv is not like qkv");
    if (grad_qkv.has_value() != !grads.empty()) throw py::value_error("all gradients are wanted, or none");
    swk::SwdaCoreArgs args{};
    args.batch = shape[0], args.channels = shape[1], args.height = shape[2], args.width = shape[3];
    args.heads = sizes[0], args.window = sizes[1], args.shift = sizes[2],
    args.last_row = sizes[3] != 0, args.last_column = sizes[4] != 0;
    args.qkv = image(qkv), args.attended = image(attended), args.threads = threads;
    const Layout layout = layout_of(args.channels, args.heads, args.window, 0);
    const int64_t size = args.channels / 2 / args.heads, rows = 2 * args.heads * in_tiles(3 * size, layout.tile_rows);
    Dense list(weights);
    args.weights.dwconv = list.take(rows * 9), args.weights.dwconv_bias = list.take(rows);
    args.weights.scale = list.take(args.heads), args.weights.bias = list.take(args.heads * layout.bias_floats);
    args.scratch = const_cast<float*>(
        Dense(scratch).take(threads * swda_core_scratch(args.channels, args.heads, args.window)));
    const swk::Kernels& kernels = swk::kernels();
    if (!grad_qkv) {
        py::gil_scoped_release unlocked;
        return kernels.swda_core(args);
    }
    const int64_t windows = args.batch * (args.height / args.window) * (args.width / args.window);
    const int64_t table = (2 * args.window - 1) * (2 * args.window - 1);
    Dense outputs(grads);
    args.grad_qkv = image(*grad_qkv);
    args.grad_dwconv = const_cast<float*>(outputs.take(windows * 2 * args.heads * 3 * size * 10));
    args.grad_bias = const_cast<float*>(outputs.take(windows * args.heads * table));
    args.grad_log_scale = const_cast<float*>(outputs.take(windows * args.heads));
    py::gil_scoped_release unlocked;
    kernels.swda_core_backward(args);
}

double peak(const std::string& dtype, int threads) {
    if (threads < 1) throw py::value_error("threads must be at least 1");
    if (dtype != "float32" && dtype != "bfloat16") throw py::value_error("dtype must be 'float32' or 'bfloat16'");
    py::gil_scoped_release unlocked;
    return dtype == "float32" ? swk::peak_float32(threads) : swk::peak_bfloat16(threads);
}

// Memory that is freed stays with the process, up to `most` bytes at the heap's end. glibc takes thresholds of mmap up to
// 32 MiB; blocks above that go back to the operating system all the same. False where the allocator is not glibc's.
bool keep_freed_memory(int64_t most) {
#if defined(__GLIBC__)
    constexpr int64_t kMostInHeap = 32 << 20, kMost = INT32_MAX;
    return mallopt(M_MMAP_THRESHOLD, static_cast<int>(std::min(most, kMostInHeap))) &&
           mallopt(M_TRIM_THRESHOLD, static_cast<int>(std::min(most, kMost)));
#else
    return most < 0;
#endif
}

std::vector<int64_t> bias_index(int64_t channels, int64_t heads, int64_t window) {
    Layout layout = layout_of(channels, heads, window, 0);
    std::vector<int64_t> index(layout.bias_floats);
    swk::kernels().swda_layout({channels, heads, window, 0, &layout.tile_rows, &layout.scratch_floats,
                                &layout.bias_floats, index.data()});
    return index;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "Native kernels: raw pointers, sizes and strides; knows no torch.";
    module.attr("has_cuda") = false;
    module.def("supported_isas", &swk::supported_isas, "Instruction sets that this machine runs, the preferred first.");
    module.def("isa", [] { return swk::kernels().isa; }, "The instruction set in use; SWINTORMER_ISA forces one.");
    module.def("use_isa", &swk::use_isa, py::arg("isa"), "Take another instruction set from now on.");
    module.def("thread_source", &swk::thread_source, "Whose threads the kernels take: 'openmp' (torch's) or 'own'.");
    module.def("use_own_threads", &swk::use_own_threads, py::arg("own"), "Take the package's own threads, or torch's.");
    module.def("keep_freed_memory", &keep_freed_memory, py::arg("most"), "Whether the allocator can be told.");
    module.def("peak_gflops", &peak, py::arg("dtype"), py::arg("threads"), "csrc/base/peak.h; 0 for none.");
    module.def("ddim_step", &ddim_step, py::arg("out"), py::arg("z"), py::arg("pred"), py::arg("fresh"),
               py::arg("unconditional"), py::arg("coefficients"), py::arg("threads"), "csrc/denoiser/ddim_step.h");
    module.def("group_norm_silu", &group_norm_silu, py::arg("out"), py::arg("x"), py::arg("norm"), py::arg("groups"),
               py::arg("eps"), py::arg("scratch"), py::arg("threads"), "csrc/denoiser/group_norm_silu.h");
    module.def("group_norm_silu_backward", &group_norm_silu_backward, py::arg("grad_x"), py::arg("grad"), py::arg("x"),
               py::arg("norm"), py::arg("groups"), py::arg("eps"), py::arg("memory"), py::arg("threads"),
               "csrc/denoiser/group_norm_silu.h");
    module.def("group_norm_silu_backward_scratch", &swk::group_norm_silu_backward_scratch, py::arg("batch"),
               py::arg("channels"), py::arg("pixels"), "Floats of scratch that it takes beside the norm's.");
    module.def("group_norm_scratch", &swk::group_norm_scratch, py::arg("batch"), py::arg("channels"),
               py::arg("pixels"), py::arg("groups"), "Floats of scratch that group_norm_silu takes.");
    module.def("conv3x3_layout", &conv3x3_layout, py::arg("batch"), py::arg("channels"), py::arg("height"),
               py::arg("width"), py::arg("threads"), "(width of a weight panel, scratch floats)");
    module.def("normed_floats", &swk::normed_floats, py::arg("channels"), "Floats of scratch for each thread.");
    module.def("norm_projection", &norm_projection, py::arg("out"), py::arg("x"), py::arg("norm"), py::arg("linear"),
               py::arg("groups"), py::arg("eps"), py::arg("scratch"), py::arg("threads"), "csrc/denoiser/norm_projection.h");
    module.def("norm_silu_conv3x3", &norm_silu_conv3x3, py::arg("out"), py::arg("x"), py::arg("skip"), py::arg("norm"),
               py::arg("conv"), py::arg("groups"), py::arg("eps"), py::arg("scratch"), py::arg("threads"),
               "csrc/denoiser/norm_silu_conv3x3.h");
    module.def("res_block", &res_block, py::arg("out"), py::arg("x"), py::arg("norms"), py::arg("convs"),
               py::arg("sizes"), py::arg("eps"), py::arg("scratch"), py::arg("threads"), "csrc/denoiser/res_block.h");
    module.def("upsample_conv3x3", &upsample_conv3x3, py::arg("out"), py::arg("x"), py::arg("conv"),
               py::arg("scratch"), py::arg("threads"), "csrc/denoiser/upsample_conv3x3.h");
    const auto block = [&](const char* name, auto function) {
        module.def(name, function, py::arg("out"), py::arg("x"), py::arg("attention"), py::arg("ffn"),
                   py::arg("sizes"), py::arg("scratch"), py::arg("threads"), "csrc/block/swda_block.h");
    };
    block("swda_block", &run_block<&swk::Kernels::swda_block>);
    block("swda_attention", &run_block<&swk::Kernels::swda_attention>);
    block("gated_ffn", &run_block<&swk::Kernels::gated_ffn>);
    module.def("swda_core", &swda_core, py::arg("qkv"), py::arg("attended"), py::arg("grad_qkv"), py::arg("weights"),
               py::arg("grads"), py::arg("sizes"), py::arg("scratch"), py::arg("threads"), "csrc/block/swda_core.h");
    module.def("swda_core_scratch", &swda_core_scratch, py::arg("channels"), py::arg("heads"), py::arg("window"),
               "Scratch floats for each thread of swda_core.");
    module.def("swda_layout", &swda_layout, py::arg("channels"), py::arg("heads"), py::arg("window"),
               py::arg("hidden"), "(rows of a weight tile, scratch floats a thread, bias floats a head)");
    module.def("bias_index", &bias_index, py::arg("channels"), py::arg("heads"), py::arg("window"),
               "Entry of the (2w-1)^2 bias table at each place of SwdaLayoutArgs::bias_index.");
}
