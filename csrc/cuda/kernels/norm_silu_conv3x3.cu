// 3x3 convolution of a normed and activated image, channels_last, as an implicit product of matrices on tensor cores.
//
//   out = conv3x3(silu((x - mean) factor + offset)) + bias + embedding + skip      stride 1, padded with 0
//
// x (B, H, W, C), C a multiple of 8; table (B, 3, C) float32 of group_norm.cu: mean, factor, offset; out, skip
// (B, H, W, OUT); bias (OUT); embedding (B, OUT). The weights are packed to (OUT / N, C / 32, column of the tap, row of
// the tap, N, 32), padded with 0. Bytes of a pixel: 2 (C + 2 OUT) in HBM, and x from L2 for each N outputs. MACs of a
// pixel: 9 C OUT.
//
// A block makes N outputs of a patch of 8 x 16 pixels, 32 channels of x at a time. The activation of the patch and its
// border, 10 x 18 pixels, is made once in shared memory (`halo`, two buffers); a tile of 16 pixels of the product is a row
// of the patch, so that the nine taps are addresses in the same halo. Eight warps, each of 4 rows of the patch (N = 32: 2)
// and a share of the outputs. The three taps of one column (`stage`) use the same rows of the halo, which are loaded once;
// their weights come by asynchronous copies, two stages ahead (N = 128: one). While a stage is computed, a third of the
// next chunk's halo is loaded, and written at its end.
#include "norm_silu_conv3x3.h"
#include "words.h"

namespace swk::cuda {
namespace {

struct ConvArgs {
    const uint16_t* x;
    const float* table;
    const uint16_t *weight, *bias, *embedding, *skip;  // the last three may be null
    uint16_t* out;
    int32_t channels, outputs, height, width, patches_down, patches_right, out_blocks;
};

template <typename T, int kN>
class NormSiluConv3x3 {
    static constexpr int kStages = conv_stages(kN);
    static constexpr int kRows = kN >= 64 ? 4 : 2, kGroups = kPatchRows / kRows;  // of a warp; warps below one another
    static constexpr int kOutputs = kN * kGroups * 32 / kConvThreads, kTiles = kOutputs / 8;  // of a warp
    static constexpr int kVectors = kConvChunk / kVector;              // of a row of a chunk
    static constexpr int kOfStage = 1;                                 // vectors of the halo that a thread makes in a stage
    static constexpr int kHaloVectors = kHaloRows * kVectors;
    static constexpr int kStageBytes = 3 * kN * kConvPitch;
    static_assert(3 * kOfStage * kConvThreads >= kHaloVectors, "the stages of a chunk make the whole halo");
    static_assert(kConvThreads % kVectors == 0, "a thread's vectors are of the same channels");

public:
    GPU_FN explicit NormSiluConv3x3(const ConvArgs& arguments) : a(arguments) {
        int block = gpu::block();
        out_block = block % a.out_blocks, block /= a.out_blocks;
        first_column = block % a.patches_right * kPatchColumns, block /= a.patches_right;
        first_row = block % a.patches_down * kPatchRows, image = block / a.patches_down;
        chunks = (a.channels + kConvChunk - 1) / kConvChunk;
        halo = gpu::shared(), weights = halo + 2 * kHaloRows * kConvPitch;
        table = reinterpret_cast<float*>(weights + kStages * kStageBytes);
        for (int i = 0; i < 3 * kOfStage; ++i) place[i] = place_of(i);
    }

    GPU_FN void run() {
        for (int i = 0; i < kStages - 1; ++i) copy_weights(i);
        const float* const of_image = a.table + static_cast<int64_t>(image) * 3 * a.channels;
        for (int i = gpu::thread(); i < 3 * a.channels; i += kConvThreads) table[i] = of_image[i];
        gpu::block_sync();
        gpu::Words4 raw[kOfStage];
#pragma unroll
        for (int stage = 0; stage < 3; ++stage) {
            load_halo(0, stage, raw);
            make_halo(0, stage, raw);
        }
        for (int chunk = 0; chunk < chunks; ++chunk) {
#pragma unroll
            for (int column = 0; column < 3; ++column) {
                gpu::copy_wait<kStages - 2>();
                gpu::block_sync();
                copy_weights(3 * chunk + column + kStages - 1);
                if (chunk + 1 < chunks) load_halo(chunk + 1, column, raw);
                multiply(chunk, column);
                if (chunk + 1 < chunks) make_halo(chunk + 1, column, raw);
            }
        }
        gpu::copy_wait<0>();
        write();
    }

private:
    // Where in x the thread's vector i of the halo is in the first chunk; -1 outside of the image.
    GPU_FN int place_of(int i) const {
        const int row = (i * kConvThreads + gpu::thread()) / kVectors;
        const int y = first_row - 1 + row / (kPatchColumns + 2), x = first_column - 1 + row % (kPatchColumns + 2);
        const bool inside = row < kHaloRows && y >= 0 && y < a.height && x >= 0 && x < a.width;
        return inside ? ((image * a.height + y) * a.width + x) * a.channels + gpu::thread() % kVectors * kVector : -1;
    }

    GPU_FN int first_channel(int chunk) const { return chunk * kConvChunk + gpu::thread() % kVectors * kVector; }

    GPU_FN void load_halo(int chunk, int stage, gpu::Words4 (&raw)[kOfStage]) const {
#pragma unroll
        for (int i = 0; i < kOfStage; ++i) {
            const int from = place[stage * kOfStage + i];
            if (from >= 0 && first_channel(chunk) < a.channels) raw[i] = load_vector(a.x + from + chunk * kConvChunk);
        }
    }

    GPU_FN void make_halo(int chunk, int stage, const gpu::Words4 (&raw)[kOfStage]) const {
        unsigned char* const to = halo + chunk % 2 * kHaloRows * kConvPitch;
        const int channel = first_channel(chunk);
        float mean[kVector] = {}, factor[kVector] = {}, offset[kVector] = {};
        if (channel < a.channels) {
            load_floats(table + channel, mean);
            load_floats(table + a.channels + channel, factor);
            load_floats(table + 2 * a.channels + channel, offset);
        }
#pragma unroll
        for (int i = 0; i < kOfStage; ++i) {
            const int vector = (stage * kOfStage + i) * kConvThreads + gpu::thread();
            if (vector >= kHaloVectors) continue;
            gpu::Words4 made = {};
            if (place[stage * kOfStage + i] >= 0 && channel < a.channels) {
                float v[kVector];
                widen<T>(raw[i], v);
                for (int j = 0; j < kVector; ++j) v[j] = silu((v[j] - mean[j]) * factor[j] + offset[j]);
                made = narrow<T>(v);
            }
            *reinterpret_cast<gpu::Words4*>(to + vector / kVectors * kConvPitch + vector % kVectors * 16) = made;
        }
    }

    // Starts the copy of the weights of a stage; none beyond the last, but always a group.
    GPU_FN void copy_weights(int stage) const {
        if (stage < 3 * chunks) {
            unsigned char* const to = weights + stage % kStages * kStageBytes;
            const uint16_t* const from = a.weight + (static_cast<int64_t>(out_block) * chunks * 3 + stage) * 3 * kN * kConvChunk;
            for (int i = gpu::thread(); i < 3 * kN * kVectors; i += kConvThreads)
                gpu::copy_async16(to + i / kVectors * kConvPitch + i % kVectors * 16, from + i * kVector);
        }
        gpu::copy_commit();
    }

    // Adds the three taps of a column for one chunk to the sums.
    GPU_FN void multiply(int chunk, int column) {
        const int lane = gpu::lane(), rows = gpu::warp() % kGroups * kRows, outputs = gpu::warp() / kGroups * kOutputs;
        const unsigned char* const pixels = halo + chunk % 2 * kHaloRows * kConvPitch +
                                            (rows * (kPatchColumns + 2) + column + lane % 16) * kConvPitch + lane / 16 * 16;
        const unsigned char* const taps = weights + (3 * chunk + column) % kStages * kStageBytes +
                                          (outputs + lane % 8 + lane / 16 * 8) * kConvPitch + lane / 8 % 2 * 16;
#pragma unroll
        for (int half = 0; half < 2; ++half) {  // of the chunk's channels
            uint32_t row[kRows + 2][4];
#pragma unroll
            for (int i = 0; i < kRows + 2; ++i)
                gpu::ldmatrix_x4(row[i], pixels + i * (kPatchColumns + 2) * kConvPitch + half * 32);
#pragma unroll
            for (int tap = 0; tap < 3; ++tap) {
#pragma unroll
                for (int pair = 0; pair < kTiles / 2; ++pair) {
                    uint32_t b[4];
                    gpu::ldmatrix_x4(b, taps + (tap * kN + pair * 16) * kConvPitch + half * 32);
#pragma unroll
                    for (int i = 0; i < kRows; ++i) {
                        gpu::mma_k16<T>(sums[i][2 * pair], row[i + tap], b[0], b[1]);
                        gpu::mma_k16<T>(sums[i][2 * pair + 1], row[i + tap], b[2], b[3]);
                    }
                }
            }
        }
    }

    GPU_FN void write() const {
        const int lane = gpu::lane(), rows = gpu::warp() % kGroups * kRows;
        const int first = out_block * kN + gpu::warp() / kGroups * kOutputs + lane % 4 * 2;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
            const int output = first + tile * 8;
            float added[2] = {};
            for (int j = 0; j < 2; ++j) added[j] = of_output(output + j);
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int y = first_row + rows + i, x = first_column + lane / 4 + half * 8;
                    if (y >= a.height || x >= a.width) continue;
                    const int64_t pixel = (static_cast<int64_t>(image) * a.height + y) * a.width + x;
                    const float* const sum = &sums[i][tile][2 * half];
                    write_pair(pixel * a.outputs + output, output, sum[0] + added[0], sum[1] + added[1]);
                }
            }
        }
    }

    GPU_FN float of_output(int output) const {
        float sum = 0;
        if (output < a.outputs) {
            if (a.bias != nullptr) sum += gpu::value<T>(a.bias[output]);
            if (a.embedding != nullptr) sum += gpu::value<T>(a.embedding[image * a.outputs + output]);
        }
        return sum;
    }

    // Outputs `output` and the next one, as one word where all pairs are aligned to one.
    GPU_FN void write_pair(int64_t place, int output, float low, float high) const {
        if (a.outputs % 2 == 0) {
            if (output >= a.outputs) return;
            if (a.skip != nullptr) {
                const uint32_t skipped = *reinterpret_cast<const uint32_t*>(a.skip + place);
                low += gpu::low<T>(skipped), high += gpu::high<T>(skipped);
            }
            *reinterpret_cast<uint32_t*>(a.out + place) = gpu::pack<T>(low, high);
            return;
        }
        if (output < a.outputs) a.out[place] = narrow<T>(low + (a.skip != nullptr ? gpu::value<T>(a.skip[place]) : 0.0f));
        if (output + 1 < a.outputs)
            a.out[place + 1] = narrow<T>(high + (a.skip != nullptr ? gpu::value<T>(a.skip[place + 1]) : 0.0f));
    }

    const ConvArgs& a;
    int out_block, first_row, first_column, image, chunks;
    unsigned char *halo, *weights;
    float* table;  // (3, C) of the image
    int place[3 * kOfStage];
    float sums[kRows][kTiles][4] = {};  // of a warp: rows of the patch, outputs by 8
};

template <typename T, int kN>
GPU_FN void norm_silu_conv3x3(const ConvArgs& a) {
    NormSiluConv3x3<T, kN>(a).run();
}

}  // namespace

GPU_INSTANCE(norm_silu_conv3x3_n32_bf16, kConvThreads, 2, ConvArgs, norm_silu_conv3x3<gpu::BFloat16, 32>)
GPU_INSTANCE(norm_silu_conv3x3_n32_f16, kConvThreads, 2, ConvArgs, norm_silu_conv3x3<gpu::Float16, 32>)
GPU_INSTANCE(norm_silu_conv3x3_n64_bf16, kConvThreads, 2, ConvArgs, norm_silu_conv3x3<gpu::BFloat16, 64>)
GPU_INSTANCE(norm_silu_conv3x3_n64_f16, kConvThreads, 2, ConvArgs, norm_silu_conv3x3<gpu::Float16, 64>)
GPU_INSTANCE(norm_silu_conv3x3_n128_bf16, kConvThreads, 2, ConvArgs, norm_silu_conv3x3<gpu::BFloat16, 128>)
GPU_INSTANCE(norm_silu_conv3x3_n128_f16, kConvThreads, 2, ConvArgs, norm_silu_conv3x3<gpu::Float16, 128>)

}  // namespace swk::cuda
