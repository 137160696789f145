// norm_silu_conv3x3 on the CPU: x is normed, goes through SiLU and Winograd's input transform as it is loaded, and bias,
// embedding and skip are added as the output is stored. 4 multiply-adds for each pixel and pair of channels, not 9;
// x is read 1.3 times beside the statistics, skip and out once, 4 bytes each.
#include "winograd.h"

namespace swk::SWK_ISA {
namespace {

int64_t panels(int64_t out_channels) { return (out_channels + kPanel - 1) / kPanel; }

// Whether each worker takes whole blocks; with fewer than 4 blocks a worker, those that are left over cost too much.
bool whole_blocks(int64_t blocks, int threads) { return blocks % threads == 0 || blocks >= 4 * threads; }

// Transformed blocks first, one for each worker or one for each block; then each worker's products.
int64_t transformed_at_once(int64_t blocks, int threads) { return whole_blocks(blocks, threads) ? threads : blocks; }

struct Job {
    const NormSiluConv3x3Args& args;
    const float* folded;
    BlockGrid grid;
    int64_t blocks, block_floats;
    float* products;

    Job(const NormSiluConv3x3Args& args_, const float* folded_)
        : args(args_), folded(folded_), grid(args.height, args.width), blocks(args.input.batch * grid.blocks()),
          block_floats(transformed_floats(args.input.channels)),
          products(args.scratch + transformed_at_once(blocks, args.input.threads) * block_floats) {}

    void panel(const Block& block, int64_t panel, const float* transformed, int worker) const {
        const int64_t channels = args.input.channels;
        float* to = products + worker * kProductFloats;
        multiply_block(channels, block.tiles(), transformed, args.weight + panel * kPoints * channels * kPanel, to);
        finish_block(args, block, panel, to);
    }
};

// Each block by one worker.
void run_whole(const Job& job) {
    const int64_t count = slices(job.args.input.channels);
    parallel_for(job.blocks, 1, 1, job.args.input.threads, [&](int64_t begin, int64_t end, int worker) {
        float* transformed = job.args.scratch + worker * job.block_floats;
        for (int64_t index = begin; index < end; ++index) {
            const Block block = job.grid.block(index);
            for (int64_t slice = 0; slice < count; ++slice) {
                transform_slice(job.args, job.folded, block, slice, transformed);
            }
            for (int64_t panel = 0; panel < panels(job.args.out_channels); ++panel) {
                job.panel(block, panel, transformed, worker);
            }
        }
    });
}

// Few blocks: workers share them, first slices of their inputs, then panels of their outputs.
void run_shared(const Job& job) {
    const int64_t count = slices(job.args.input.channels), outputs = panels(job.args.out_channels);
    const auto transformed = [&](int64_t index) { return job.args.scratch + index * job.block_floats; };
    parallel_for(job.blocks * count, 1, 1, job.args.input.threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t index = i / count;
            transform_slice(job.args, job.folded, job.grid.block(index), i % count, transformed(index));
        }
    });
    // Panels outermost: a worker reads its panels' weights once.
    parallel_for(outputs * job.blocks, 1, 1, job.args.input.threads, [&](int64_t begin, int64_t end, int worker) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t index = i % job.blocks;
            job.panel(job.grid.block(index), i / job.blocks, transformed(index), worker);
        }
    });
}

}  // namespace

void conv3x3_layout(const Conv3x3LayoutArgs& args) {
    const int64_t blocks = args.batch * BlockGrid(args.height, args.width).blocks();
    *args.panel = kPanel;
    *args.scratch_floats = transformed_at_once(blocks, args.threads) * transformed_floats(args.channels) +
                           args.threads * kProductFloats;
}

void norm_silu_conv3x3(const NormSiluConv3x3Args& args) {
    const Job job(args, norm_of_rows(args.input));
    if (whole_blocks(job.blocks, args.input.threads)) return run_whole(job);
    run_shared(job);
}

}  // namespace swk::SWK_ISA
