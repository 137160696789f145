// Runs every op on one thread and on more under a sanitizer, and compares the bits: test_sanitizers.py. Images and scratch
// lie in heap buffers that end where the data end. Values are checked in Python, and so are the sizes of packed weights:
// here all weights are one buffer, large enough for any of them.
#include <stdlib.h>

#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/base/parallel.h"
#include "../../csrc/dispatch/dispatch.h"

namespace {

using swk::kernels;

constexpr int kThreads[] = {1, 2, 5};

std::vector<float> random_values(int64_t count) {
    static std::mt19937 generator(0);
    std::normal_distribution<float> normal(0.0f, 0.1f);
    std::vector<float> values(count);
    for (float& value : values) value = normal(generator);
    return values;
}

const float* weights() {
    static const std::vector<float> values = random_values(1 << 20);
    return values.data();
}

struct Free {
    void operator()(float* memory) const { free(memory); }
};
std::vector<std::unique_ptr<float, Free>> kept;

// Memory of one call, aligned as the kernels ask and not one float longer.
float* scratch(int64_t floats) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, floats * sizeof(float)) != 0) throw std::runtime_error("out of memory");
    kept.emplace_back(static_cast<float*>(memory));
    return kept.back().get();
}

// run(threads, out) writes `floats` results at `out`.
void same_bits(const char* op, int64_t floats, const std::function<void(int, float*)>& run) {
    std::vector<float> first;
    for (const int threads : kThreads) {
        std::vector<float> out(floats);
        run(threads, out.data());
        kept.clear();
        if (first.empty()) first = out;
        if (std::memcmp(first.data(), out.data(), floats * sizeof(float)) != 0) {
            throw std::runtime_error(std::string(op) + ": the bits depend on threads");
        }
    }
}

void run_ddim_step() {
    const int64_t sizes[] = {4, 150, 131}, strides[] = {150 * 131, 131, 1}, count = 4 * 150 * 131;
    const std::vector<float> z = random_values(count), pred = random_values(count);
    same_bits("ddim_step", count, [&](int threads, float* out) {
        swk::DdimStepArgs args{};
        args.rank = 3, args.sizes = sizes, args.out = out, args.z = z.data(), args.pred = pred.data();
        args.out_strides = args.z_strides = args.pred_strides = strides;
        args.coefficients = {1.5f, -0.5f, 0.3f, 0.7f, 0.4f, 0.2f, 1.0f, 3.0f};
        args.threads = threads;
        kernels().ddim_step(args);
    });
}

// Images in planes or in rows of channels, and a product's out channels.
struct Image {
    int64_t batch, channels, height, width, groups, out;

    int64_t pixels() const { return height * width; }
    int64_t floats(int64_t of) const { return batch * of * pixels(); }
    Image with(int64_t of) const { return {batch, of, height, width, 1, out}; }
    swk::PlaneStrides strides(bool rows) const {
        return {channels * pixels(), rows ? 1 : pixels(), rows ? channels : 1};
    }
};

constexpr Image kImages[] = {{2, 40, 34, 30, 4, 24}, {1, 65, 14, 35, 5, 70}, {3, 1, 1, 1, 1, 1}};

swk::GroupNormInput norm_input(const float* x, const Image& image, bool rows, int threads) {
    float* const memory = scratch(swk::group_norm_scratch(image.batch, image.channels, image.pixels(), image.groups));
    return {image.batch, image.channels, image.pixels(), image.groups, x, image.strides(rows),
            {weights(), weights(), weights(), weights()}, 1e-5f, memory, threads};
}

void run_group_norm(const Image& image, bool rows) {
    const int64_t count = image.floats(image.channels);
    const std::vector<float> x = random_values(count), grad = random_values(count);
    const swk::PlaneStrides strides = image.strides(rows);
    same_bits("group_norm_silu", count, [&](int threads, float* out) {
        kernels().group_norm_silu({norm_input(x.data(), image, rows, threads), out, strides});
    });
    same_bits("group_norm_silu_backward", count, [&](int threads, float* out) {
        float* const sums = scratch(2 * image.batch * image.channels);
        float* const memory =
            scratch(swk::group_norm_silu_backward_scratch(image.batch, image.channels, image.pixels()));
        kernels().group_norm_silu_backward(
            {norm_input(x.data(), image, rows, threads), grad.data(), strides, out, strides, sums, memory});
    });
}

swk::Conv3x3 conv(const float* x, float* out, const Image& image, int scale, int threads) {
    const int64_t height = scale * image.height, width = scale * image.width, in = image.channels, to = image.out;
    int64_t panel = 0, floats = 0;
    kernels().conv3x3_layout({image.batch, in, height, width, threads, &panel, &floats});
    swk::Conv3x3 args{};
    args.batch = image.batch, args.channels = in, args.height = height, args.width = width, args.out_channels = to;
    args.x = x, args.x_strides = {image.pixels() * in, image.width * in, in};
    args.weight = args.bias = args.embedding = weights();
    args.out = out, args.out_strides = {height * width * to, width * to, to};
    args.scratch = scratch(floats), args.threads = threads;
    return args;
}

void run_convolutions(const Image& image) {
    const int64_t count = image.floats(image.out);
    const std::vector<float> x = random_values(image.floats(image.channels));
    const auto normed = [](const float* from, float* to, const Image& shape, int threads) {
        return swk::NormSiluConv3x3Args{norm_input(from, shape, true, threads), conv(from, to, shape, 1, threads)};
    };
    same_bits("norm_silu_conv3x3", count, [&](int threads, float* out) {
        kernels().norm_silu_conv3x3(normed(x.data(), out, image, threads));
    });
    same_bits("res_block", count, [&](int threads, float* out) {
        float *const hidden = scratch(count), *const skip = scratch(count);
        kernels().res_block({normed(x.data(), hidden, image, threads),
                             normed(hidden, out, image.with(image.out), threads), {weights(), weights(), skip}});
    });
    same_bits("upsample_conv3x3", 4 * count, [&](int threads, float* out) {
        kernels().upsample_conv3x3({conv(x.data(), out, image, 2, threads)});
    });
    same_bits("norm_projection", count, [&](int threads, float* out) {
        float* const memory = scratch(threads * swk::normed_floats(image.channels));
        kernels().norm_projection(
            {norm_input(x.data(), image, true, threads), image.out, weights(), weights(), out, memory});
    });
}

struct Block {
    int64_t channels, heads, window, shift, hidden, side;
};

constexpr Block kBlocks[] = {{24, 2, 8, 3, 63, 32}, {10, 1, 7, 6, 26, 21}, {34, 1, 1, 0, 7, 5}};

swk::ImageView square(const float* data, int64_t channels, int64_t side) {
    return {const_cast<float*>(data), channels * side * side, side * side, side, 1};
}

void run_block(const Block& block) {
    const int64_t c = block.channels, side = block.side, count = c * side * side;
    const swk::TiledMatrix matrix{weights(), weights()};
    const std::vector<float> x = random_values(count), qkv = random_values(3 * count);
    const swk::AttentionWeights attention{weights(), weights(), matrix,    weights(),
                                          weights(), matrix,    weights(), weights()};
    same_bits("swda_block", count, [&](int threads, float* out) {
        int64_t tile = 0, floats = 0, bias = 0;
        kernels().swda_layout({c, block.heads, block.window, block.hidden, &tile, &floats, &bias, nullptr});
        kernels().swda_block({1, c, side, side, block.heads, block.window, block.shift, square(x.data(), c, side),
                              square(out, c, side), attention, {weights(), weights(), matrix, matrix, block.hidden},
                              scratch(threads * floats), threads});
    });
    const auto core = [&](const float* attended, int threads) {
        int64_t floats = 0;
        kernels().swda_core_layout({c, block.heads, block.window, &floats});
        swk::SwdaCoreArgs args{};
        args.batch = 1, args.channels = c, args.height = args.width = side;
        args.heads = block.heads, args.window = block.window, args.shift = block.shift;
        args.last_row = args.last_column = true;
        args.qkv = square(qkv.data(), 3 * c, side), args.attended = square(attended, c, side), args.weights = attention;
        args.scratch = scratch(threads * floats), args.threads = threads;
        return args;
    };
    same_bits("swda_core", count, [&](int threads, float* out) { kernels().swda_core(core(out, threads)); });
    same_bits("swda_core_backward", 3 * count, [&](int threads, float* out) {
        swk::SwdaCoreArgs args = core(x.data(), threads);
        const int64_t windows = (side / block.window) * (side / block.window), w = block.window;
        args.grad_qkv = square(out, 3 * c, side);
        args.grad_dwconv = scratch(windows * 3 * c * 10), args.grad_log_scale = scratch(windows * block.heads);
        args.grad_bias = scratch(windows * block.heads * (2 * w - 1) * (2 * w - 1));
        kernels().swda_core_backward(args);
    });
}

}  // namespace

int main() {
    try {
        for (const std::string& isa : swk::supported_isas()) {
            swk::use_isa(isa);
            run_ddim_step();
            for (const Image& image : kImages) {
                run_group_norm(image, false), run_group_norm(image, true);
                run_convolutions(image);
            }
            for (const Block& block : kBlocks) run_block(block);
            std::printf("%s ok\n", isa.c_str());
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s: %s\n", kernels().isa, error.what());
        return 1;
    }
}
