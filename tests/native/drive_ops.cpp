// Runs every op on every instruction set of this machine, on sizes, strides and thread counts that are not round, in
// heap buffers that end where the data end: built with sanitizers (tests/test_sanitizers.py), a step too far stops it.
// Values are checked against float64 in Python; here only what a stray access would spoil: every element is written,
// nothing between the elements is, and neither threads nor layout change a bit.
#include "tensors.h"

namespace {

// ---- swda_block, swda_attention, gated_ffn --------------------------------------------------------------------------

struct BlockShape {
    int64_t channels, heads, window, shift, hidden, batch, height, width;
};

constexpr BlockShape kBlocks[] = {
    {2, 1, 2, 1, 1, 1, 4, 6},       {6, 3, 3, 1, 5, 2, 9, 6},      {10, 1, 7, 6, 26, 1, 14, 21},
    {14, 1, 5, 0, 37, 3, 5, 10},    {24, 2, 8, 3, 63, 1, 16, 24},  {48, 1, 16, 8, 127, 1, 32, 16},
    {64, 4, 17, 16, 1, 1, 17, 34},  {258, 3, 4, 2, 300, 1, 8, 12}, {34, 1, 1, 0, 7, 1, 3, 5},
};

// The weights of one block, each in a buffer of its own size. A tile's padding rows are 0, as packing.py makes them;
// which rows are padding does not matter to the accesses, so here all rows are random.
struct BlockWeights {
    std::vector<Buffer> kept;
    int64_t scratch_floats = 0;

    const float* make(int64_t count, float scale) {
        kept.emplace_back(count);
        return kept.back().randomise(scale).data();
    }

    swk::TiledMatrix tiled(int64_t rows, int64_t depth) {
        const float* weight = make(rows * depth, 1.0f / std::sqrt(static_cast<float>(depth)));
        return {weight, make(rows, 0.1f)};
    }

    BlockWeights(const BlockShape& shape, bool attention, bool ffn, swk::SwdaBlockArgs& args) {
        const int64_t c = shape.channels;
        args.heads = attention ? shape.heads : 0, args.window = shape.window, args.shift = shape.shift;
        args.ffn.hidden = ffn ? shape.hidden : 0;
        int64_t tile = 0, bias_floats = 0;
        swk::SwdaLayoutArgs layout{c, args.heads, args.window, args.ffn.hidden, &tile, &scratch_floats, &bias_floats,
                                   nullptr};
        swk::kernels().swda_layout(layout);
        std::vector<int64_t> index(bias_floats);
        layout.bias_index = index.data();
        if (attention) swk::kernels().swda_layout(layout);
        const int64_t table = (2 * shape.window - 1) * (2 * shape.window - 1);
        for (int64_t entry : index) expect(entry >= 0 && entry < table, "bias_index points outside the table");
        const auto in_tiles = [](int64_t rows, int64_t size) { return (rows + size - 1) / size * size; };
        if (attention) {
            const int64_t rows = 2 * shape.heads * in_tiles(3 * (c / 2 / shape.heads), tile);
            swk::AttentionWeights& to = args.attention;
            to.norm_weight = make(c, 1), to.norm_bias = make(c, 1);
            to.qkv = tiled(rows, c);
            to.dwconv = make(rows * 9, 0.3f), to.dwconv_bias = make(rows, 0.1f);
            to.proj = tiled(in_tiles(c, tile), c);
            to.scale = make(shape.heads, 1), to.bias = make(shape.heads * bias_floats, 1);
        }
        if (ffn) {
            args.ffn.norm_weight = make(c, 1), args.ffn.norm_bias = make(c, 1);
            args.ffn.in = tiled(2 * in_tiles(shape.hidden, tile / 2), c);
            args.ffn.out = tiled(in_tiles(c, tile), shape.hidden);
        }
    }
};

using BlockOp = void (*swk::Kernels::*)(const swk::SwdaBlockArgs&);

void run_block(BlockOp op, const BlockShape& shape, bool attention, bool ffn) {
    swk::SwdaBlockArgs args{};
    const BlockWeights weights(shape, attention, ffn, args);
    // The FFN knows no windows: there the sides need not be multiples.
    const Sizes sizes{shape.batch, shape.channels, shape.height + !attention, shape.width + !attention};
    args.batch = sizes[0], args.channels = sizes[1], args.height = sizes[2], args.width = sizes[3];
    const std::vector<float> values = random_values(elements(sizes));
    std::vector<float> first;
    for (const Layout layout : kLayouts) {
        Tensor x(sizes, strides_of(layout, sizes)), out(sizes, strides_of(layout, sizes));
        x.fill(values);
        args.x = x.image(), args.out = out.image();
        for (const int threads : {1, 2, 5}) {
            const Buffer scratch(threads * weights.scratch_floats);
            args.scratch = scratch.data(), args.threads = threads;
            (swk::kernels().*op)(args);
            const std::vector<float> result = out.take_output();
            if (first.empty()) first = result;
            expect(same_bits(first, result), "the bits depend on threads or layout");
        }
    }
}

// ---- swda_core, swda_core_backward -----------------------------------------------------------------------------------

void run_core(const BlockShape& shape) {
    swk::SwdaBlockArgs block{};
    const BlockWeights weights(shape, true, false, block);
    const int64_t c = shape.channels, d = c / 2 / shape.heads;
    const int64_t windows = shape.batch * (shape.height / shape.window) * (shape.width / shape.window);
    const Sizes narrow{shape.batch, c, shape.height, shape.width}, wide{shape.batch, 3 * c, shape.height, shape.width};
    int64_t scratch_floats = 0;
    swk::kernels().swda_core_layout({c, shape.heads, shape.window, &scratch_floats});
    swk::SwdaCoreArgs args{};
    args.batch = shape.batch, args.channels = c, args.height = shape.height, args.width = shape.width;
    args.heads = shape.heads, args.window = shape.window, args.shift = shape.shift, args.last_row = args.last_column = true;
    args.weights = block.attention;
    const std::vector<float> qkv = random_values(elements(wide)), grad = random_values(elements(narrow));
    std::vector<std::vector<float>> first;
    for (const Layout layout : kLayouts) {
        Tensor u(wide, strides_of(layout, wide)), of_u(wide, strides_of(layout, wide));
        Tensor attended(narrow, strides_of(layout, narrow)), of_attended(narrow, strides_of(layout, narrow));
        u.fill(qkv), of_attended.fill(grad);
        const Buffer dwconv(windows * 2 * shape.heads * 3 * d * 10), scale(windows * shape.heads);
        const Buffer bias(windows * shape.heads * (2 * shape.window - 1) * (2 * shape.window - 1));
        for (const int threads : {1, 3}) {
            const Buffer scratch(threads * scratch_floats);
            args.scratch = scratch.data(), args.threads = threads;
            args.qkv = u.image(), args.attended = attended.image();
            swk::kernels().swda_core(args);
            args.attended = of_attended.image(), args.grad_qkv = of_u.image();
            args.grad_dwconv = dwconv.data(), args.grad_bias = bias.data(), args.grad_log_scale = scale.data();
            swk::kernels().swda_core_backward(args);
            std::vector<std::vector<float>> results{attended.take_output(), of_u.take_output()};
            for (const Buffer* sums : {&dwconv, &bias, &scale}) {
                results.emplace_back(sums->data(), sums->data() + sums->count());
                for (float value : results.back()) expect(std::isfinite(value), "a sum was not written, or is not finite");
            }
            if (first.empty()) first = results;
            for (size_t i = 0; i < first.size(); ++i) {
                expect(same_bits(first[i], results[i]), "the bits of the core depend on threads or layout");
            }
        }
    }
}

// ---- ddim_step ------------------------------------------------------------------------------------------------------

struct Operands {
    Sizes sizes, out, z, pred, fresh;  // strides
};

void run_ddim_step() {
    const std::vector<Operands> cases = {
        {{}, {}, {}, {}, {}},
        {{0, 3}, {3, 1}, {3, 1}, {3, 1}, {3, 1}},
        {{7}, {1}, {3}, {0}, {2}},
        {{1, 3, 5, 1, 2}, {30, 10, 2, 9, 1}, {1, 10, 2, 1, 5}, {0, 0, 2, 0, 1}, {30, 1, 6, 6, 3}},
        {{2, 4, 33, 17}, {4 * 561, 561, 17, 1}, {4 * 561, 1, 68, 4}, {0, 561, 17, 1}, {4 * 561, 561, 1, 33}},
        {{1, 4, 150, 131}, {78600, 19650, 131, 1}, {78600, 1, 524, 4}, {78600, 19650, 131, 1}, {0, 0, 0, 0}},
    };
    for (const Operands& operands : cases) {
        for (const int with : {0, 1, 2, 3}) {
            const int64_t count = elements(operands.sizes);
            Tensor out(operands.sizes, operands.out), z(operands.sizes, operands.z);
            Tensor pred(operands.sizes, operands.pred), fresh(operands.sizes, operands.fresh);
            Tensor unconditional(operands.sizes, operands.z);
            for (Tensor* input : {&z, &pred, &fresh, &unconditional}) input->fill(random_values(count));
            swk::DdimStepArgs args{};
            args.rank = static_cast<int>(operands.sizes.size()), args.sizes = operands.sizes.data();
            args.out = out.buffer.data(), args.out_strides = operands.out.data();
            args.z = z.buffer.data(), args.z_strides = operands.z.data();
            args.pred = pred.buffer.data(), args.pred_strides = operands.pred.data();
            if (with & 1) args.fresh = fresh.buffer.data(), args.fresh_strides = operands.fresh.data();
            if (with & 2) {
                args.unconditional = unconditional.buffer.data(), args.unconditional_strides = operands.z.data();
            }
            const float clip = operands.sizes.size() % 2 ? 1.0f : __builtin_inff();
            args.coefficients = {1.5f, -0.5f, 0.3f, 0.7f, 0.4f, 0.2f, clip, 3.0f};
            std::vector<float> first;
            for (const int threads : {1, 3}) {
                args.threads = threads;
                swk::kernels().ddim_step(args);
                const std::vector<float> result = out.take_output();
                if (threads == 1) first = result;
                expect(same_bits(first, result), "the bits depend on threads");
            }
        }
    }
}

// ---- group_norm_silu ------------------------------------------------------------------------------------------------

struct NormShape {
    int64_t batch, channels, height, width, groups;
};

constexpr NormShape kNorms[] = {
    {1, 1, 1, 1, 1},   {3, 40, 9, 7, 4},   {2, 7, 5, 3, 7},    {1, 6, 150, 131, 1},
    {2, 96, 1, 70, 8}, {1, 33, 64, 65, 3}, {1, 160, 33, 1, 32}, {2, 4100, 1, 2, 1},
};

swk::RowStrides rows_of(const Sizes& strides) { return {strides[0], strides[2], strides[3]}; }
swk::PlaneStrides planes_of(const Sizes& strides) { return {strides[0], strides[1], strides[3]}; }

void run_group_norm_silu(const NormShape& shape) {
    const Sizes sizes{shape.batch, shape.channels, shape.height, shape.width};
    const int64_t pixels = shape.height * shape.width;
    const std::vector<float> values = random_values(elements(sizes));
    Buffer weight(shape.channels), bias(shape.channels);
    Buffer scale(shape.batch * shape.channels), shift(shape.batch * shape.channels);
    for (Buffer* buffer : {&weight, &bias, &scale, &shift}) buffer->randomise(1.0f);
    for (const Layout layout : {Layout::kNchw, Layout::kChannelsLast}) {
        Tensor x(sizes, strides_of(layout, sizes)), out(sizes, strides_of(layout, sizes));
        x.fill(values);
        for (const bool plain : {false, true}) {
            swk::GroupNormSiluArgs args{};
            args.out = out.buffer.data(), args.out_strides = planes_of(out.strides);
            swk::GroupNormInput& input = args.input;
            input.batch = shape.batch, input.channels = shape.channels, input.pixels = pixels;
            input.groups = shape.groups, input.eps = 1e-5f;
            input.x = x.buffer.data(), input.x_strides = planes_of(x.strides);
            if (!plain) input.norm = {weight.data(), bias.data(), scale.data(), shift.data()};
            std::vector<float> first;
            for (const int threads : {1, 2, 5}) {
                const Buffer scratch(swk::group_norm_scratch(shape.batch, shape.channels, pixels, shape.groups));
                input.scratch = scratch.data(), input.threads = threads;
                swk::kernels().group_norm_silu(args);
                const std::vector<float> result = out.take_output();
                if (first.empty()) first = result;
                expect(same_bits(first, result), "the bits depend on threads");
            }
        }
    }
}

// Gradients, those of the result in a buffer of their own and in that of x's gradients.
void run_group_norm_silu_backward(const NormShape& shape) {
    const Sizes sizes{shape.batch, shape.channels, shape.height, shape.width};
    const int64_t pixels = shape.height * shape.width;
    const std::vector<float> values = random_values(elements(sizes)), grads = random_values(elements(sizes));
    Buffer weight(shape.channels), scale(shape.batch * shape.channels);
    for (Buffer* buffer : {&weight, &scale}) buffer->randomise(1.0f);
    for (const Layout layout : {Layout::kNchw, Layout::kChannelsLast}) {
        Tensor x(sizes, strides_of(layout, sizes)), grad(sizes, x.strides), grad_x(sizes, x.strides);
        x.fill(values), grad.fill(grads);
        std::vector<float> first;
        for (const int threads : {1, 2, 5}) {
            for (const bool in_place : {false, true}) {
                const Buffer sums(2 * shape.batch * shape.channels);
                const Buffer scratch(swk::group_norm_scratch(shape.batch, shape.channels, pixels, shape.groups));
                const Buffer more(swk::group_norm_silu_backward_scratch(shape.batch, shape.channels, pixels));
                swk::GroupNormSiluBackwardArgs args{};
                args.input = {shape.batch, shape.channels, pixels, shape.groups, x.buffer.data(), planes_of(x.strides),
                              {weight.data(), nullptr, scale.data(), nullptr}, 1e-5f, scratch.data(), threads};
                if (in_place) grad_x.fill(grads);
                args.grad = (in_place ? grad_x : grad).buffer.data(), args.grad_strides = planes_of(grad.strides);
                args.grad_x = grad_x.buffer.data(), args.grad_x_strides = planes_of(grad_x.strides);
                args.sums = sums.data(), args.scratch = more.data();
                swk::kernels().group_norm_silu_backward(args);
                std::vector<float> result = grad_x.take_output();
                result.insert(result.end(), sums.data(), sums.data() + sums.count());
                if (first.empty()) first = result;
                expect(same_bits(first, result), "the bits depend on threads, or on where the gradients lie");
                for (const float value : result) expect(!std::isnan(value), "an element that nobody wrote");
            }
        }
    }
}

// ---- norm_silu_conv3x3 ----------------------------------------------------------------------------------------------

struct ConvShape {
    NormShape norm;
    int64_t out;
};

constexpr ConvShape kConvs[] = {
    {{1, 1, 1, 1, 1}, 1}, {{3, 40, 9, 7, 4}, 24}, {{2, 70, 12, 16, 7}, 33}, {{1, 65, 14, 35, 5}, 70},
};

void run_norm_silu_conv3x3(const ConvShape& shape) {
    const NormShape& norm = shape.norm;
    const Sizes sizes{norm.batch, norm.channels, norm.height, norm.width};
    const Sizes out_sizes{norm.batch, shape.out, norm.height, norm.width};
    Tensor x(sizes, strides_of(Layout::kChannelsLast, sizes));
    x.fill(random_values(elements(sizes)));
    Tensor out(out_sizes, strides_of(Layout::kChannelsLast, out_sizes)), skip(out_sizes, out.strides);
    skip.fill(random_values(elements(out_sizes)));
    const int64_t pixels = norm.height * norm.width;
    Buffer bias(shape.out), embedding(norm.batch * shape.out);
    bias.randomise(1), embedding.randomise(1);
    std::vector<float> first;
    for (const int threads : {1, 2, 5}) {
        int64_t panel = 0, floats = 0;
        swk::kernels().conv3x3_layout({norm.batch, norm.channels, norm.height, norm.width, threads, &panel, &floats});
        Buffer weight((shape.out + panel - 1) / panel * 16 * norm.channels * panel);
        generator.seed(1);
        weight.randomise(0.1f);
        const Buffer scratch(floats), norm_scratch(swk::group_norm_scratch(norm.batch, norm.channels, pixels, norm.groups));
        swk::NormSiluConv3x3Args args{};
        args.norm = {norm.batch, norm.channels, pixels, norm.groups, x.buffer.data(),
                     {x.strides[0], 1, x.strides[3]}, {}, 1e-5f, norm_scratch.data(), threads};
        swk::Conv3x3& conv = args.conv;
        conv.batch = norm.batch, conv.channels = norm.channels, conv.out_channels = shape.out;
        conv.height = norm.height, conv.width = norm.width, conv.threads = threads;
        conv.x = x.buffer.data(), conv.x_strides = rows_of(x.strides);
        conv.skip_strides = conv.out_strides = rows_of(out.strides);
        conv.weight = weight.data(), conv.bias = bias.data(), conv.embedding = embedding.data();
        conv.skip = skip.buffer.data(), conv.out = out.buffer.data(), conv.scratch = scratch.data();
        swk::kernels().norm_silu_conv3x3(args);
        const std::vector<float> result = out.take_output();
        if (first.empty()) first = result;
        expect(same_bits(first, result), "the bits depend on threads");
    }
}

// ---- norm_projection ------------------------------------------------------------------------------------------------

void run_norm_projection(const ConvShape& shape) {
    const NormShape& norm = shape.norm;
    const Sizes sizes{norm.batch, norm.channels, norm.height, norm.width};
    const int64_t pixels = norm.height * norm.width;
    Tensor x(sizes, strides_of(Layout::kChannelsLast, sizes));
    Tensor out({norm.batch, pixels, shape.out}, {pixels * shape.out, shape.out, 1});
    x.fill(random_values(elements(sizes)));
    Buffer bias(shape.out);
    bias.randomise(1.0f);
    std::vector<float> first;
    for (const int threads : {1, 2, 5}) {
        int64_t panel = 0, floats = 0;
        swk::kernels().conv3x3_layout({norm.batch, norm.channels, norm.height, norm.width, threads, &panel, &floats});
        Buffer weight((shape.out + panel - 1) / panel * norm.channels * panel);
        generator.seed(1);
        weight.randomise(0.1f);
        const Buffer scratch(threads * swk::normed_floats(norm.channels));
        const Buffer norm_scratch(swk::group_norm_scratch(norm.batch, norm.channels, pixels, norm.groups));
        swk::NormProjectionArgs args{};
        args.norm = {norm.batch, norm.channels, pixels, norm.groups, x.buffer.data(),
                     {x.strides[0], 1, x.strides[3]}, {}, 1e-5f, norm_scratch.data(), threads};
        args.out_channels = shape.out, args.weight = weight.data(), args.bias = bias.data();
        args.out = out.buffer.data(), args.scratch = scratch.data();
        swk::kernels().norm_projection(args);
        const std::vector<float> result = out.take_output();
        if (first.empty()) first = result;
        expect(same_bits(first, result), "the bits depend on threads");
    }
}

// ---- res_block ------------------------------------------------------------------------------------------------------

// Through `shape.out` channels back to the input's, and to two more through a shortcut.
void run_res_block(const ConvShape& shape, bool shortcut) {
    const NormShape& norm = shape.norm;
    const int64_t pixels = norm.height * norm.width, last = norm.channels + (shortcut ? 2 : 0);
    const Sizes sizes{norm.batch, norm.channels, norm.height, norm.width};
    const Sizes out_sizes{norm.batch, last, norm.height, norm.width};
    const Sizes middle_sizes{norm.batch, shape.out, norm.height, norm.width};
    const Sizes middle = strides_of(Layout::kChannelsLast, middle_sizes);
    Tensor x(sizes, strides_of(Layout::kChannelsLast, sizes)), out(out_sizes, strides_of(Layout::kChannelsLast, out_sizes));
    x.fill(random_values(elements(sizes)));
    std::vector<float> first;
    for (const int threads : {1, 2, 5}) {
        int64_t panel = 0, floats = 0, floats2 = 0;
        const auto layout = swk::kernels().conv3x3_layout;
        layout({norm.batch, norm.channels, norm.height, norm.width, threads, &panel, &floats});
        layout({norm.batch, shape.out, norm.height, norm.width, threads, &panel, &floats2});
        const auto filled = [&](int64_t channels) { return (channels + panel - 1) / panel * panel; };
        generator.seed(1);
        Buffer weight1(16 * norm.channels * filled(shape.out)), weight2(16 * shape.out * filled(last));
        Buffer weight3(norm.channels * filled(last)), bias(last);
        for (Buffer* buffer : {&weight1, &weight2, &weight3, &bias}) buffer->randomise(0.1f);
        const Buffer scratch(std::max(floats, floats2)), hidden(elements(middle_sizes)), skip(elements(out_sizes));
        const auto norm_floats = [&](int64_t c, int64_t g) { return swk::group_norm_scratch(norm.batch, c, pixels, g); };
        const Buffer norm1(norm_floats(norm.channels, norm.groups)), norm2(norm_floats(shape.out, 1));
        swk::ResBlockArgs args{};
        args.first.norm = {norm.batch, norm.channels, pixels, norm.groups, x.buffer.data(),
                           {x.strides[0], 1, x.strides[3]}, {}, 1e-5f, norm1.data(), threads};
        args.second.norm = {norm.batch, shape.out, pixels, 1, hidden.data(), {middle[0], 1, middle[3]}, {}, 1e-5f,
                            norm2.data(), threads};
        swk::Conv3x3 &one = args.first.conv, &two = args.second.conv;
        for (swk::Conv3x3* conv : {&one, &two}) {
            conv->batch = norm.batch, conv->height = norm.height, conv->width = norm.width;
            conv->scratch = scratch.data(), conv->threads = threads;
        }
        one.channels = norm.channels, one.out_channels = two.channels = shape.out, two.out_channels = last;
        one.x = x.buffer.data(), one.x_strides = rows_of(x.strides), one.weight = weight1.data();
        one.out = hidden.data(), two.x = hidden.data(), one.out_strides = two.x_strides = rows_of(middle);
        two.weight = weight2.data(), two.out = out.buffer.data(), two.out_strides = rows_of(out.strides);
        if (shortcut) args.shortcut = {weight3.data(), bias.data(), skip.data()};
        if (!shortcut) two.skip = x.buffer.data(), two.skip_strides = one.x_strides;
        swk::kernels().res_block(args);
        const std::vector<float> result = out.take_output();
        if (first.empty()) first = result;
        expect(same_bits(first, result), "the bits depend on threads");
    }
}

void run_upsample_conv3x3(const ConvShape& shape) {
    const NormShape& in = shape.norm;
    const Sizes sizes{in.batch, in.channels, in.height, in.width};
    const Sizes out_sizes{in.batch, shape.out, 2 * in.height, 2 * in.width};
    Tensor x(sizes, strides_of(Layout::kChannelsLast, sizes));
    Tensor out(out_sizes, strides_of(Layout::kChannelsLast, out_sizes));
    x.fill(random_values(elements(sizes)));
    std::vector<float> first;
    for (const int threads : {1, 2, 5}) {
        int64_t panel = 0, floats = 0;
        swk::kernels().conv3x3_layout({in.batch, in.channels, 2 * in.height, 2 * in.width, threads, &panel, &floats});
        Buffer weight((shape.out + panel - 1) / panel * 9 * in.channels * panel);
        generator.seed(1);
        weight.randomise(0.1f);
        const Buffer scratch(floats);
        swk::UpsampleConv3x3Args args{};
        swk::Conv3x3& conv = args.conv;
        conv.batch = in.batch, conv.channels = in.channels, conv.out_channels = shape.out;
        conv.height = 2 * in.height, conv.width = 2 * in.width, conv.threads = threads;
        conv.x = x.buffer.data(), conv.x_strides = rows_of(x.strides), conv.weight = weight.data();
        conv.out = out.buffer.data(), conv.out_strides = rows_of(out.strides), conv.scratch = scratch.data();
        swk::kernels().upsample_conv3x3(args);
        const std::vector<float> result = out.take_output();
        if (first.empty()) first = result;
        expect(same_bits(first, result), "the bits depend on threads");
    }
}

void run_isa(const std::string& isa) {
    swk::use_isa(isa);
    run_ddim_step();
    for (const NormShape& shape : kNorms) run_group_norm_silu(shape), run_group_norm_silu_backward(shape);
    for (const ConvShape& shape : kConvs) {
        run_norm_silu_conv3x3(shape), run_upsample_conv3x3(shape);
        run_res_block(shape, false), run_res_block(shape, true);
        run_norm_projection(shape);
    }
    for (const BlockShape& shape : kBlocks) {
        run_block(&swk::Kernels::swda_block, shape, true, true);
        run_block(&swk::Kernels::swda_attention, shape, true, false);
        run_block(&swk::Kernels::gated_ffn, shape, false, true);
        run_core(shape);
    }
    std::printf("%s ok\n", isa.c_str());
}

}  // namespace

int main() {
    try {
        for (const std::string& isa : swk::supported_isas()) run_isa(isa);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s: %s\n", swk::kernels().isa, error.what());
        return 1;
    }
}
