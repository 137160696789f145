// Small kernels with one fault each, and the same without it. test_faults.py expects a report that names the line with the
// fault's mark (FAULT) and, for a pair of accesses, the line of the other one (OTHER).
#include "gpu.h"

struct Arguments {
    const float* x;
    float* out;
    int* counter;
    int32_t n, planted;
};

GPU_FN float* memory() { return reinterpret_cast<float*>(gpu::shared()); }
GPU_FN int place(const Arguments& a) { return gpu::block() * a.n + gpu::thread(); }

// Each of these: what is right unless a.planted is 1.
GPU_FN void missing_block_sync(const Arguments& a) {
    memory()[gpu::thread()] = a.x[place(a)];  // OTHER missing_block_sync
    if (!a.planted) gpu::block_sync();
    a.out[place(a)] = memory()[a.n - 1 - gpu::thread()];  // FAULT missing_block_sync
}
GPU_INSTANCE(missing_block_sync_kernel, 64, 1, Arguments, missing_block_sync)

GPU_FN void missing_second_sync(const Arguments& a) {
    memory()[gpu::thread()] = a.x[place(a)];
    gpu::block_sync();
    const float v = memory()[a.n - 1 - gpu::thread()];  // OTHER missing_second_sync
    if (!a.planted) gpu::block_sync();
    memory()[gpu::thread()] = v;  // FAULT missing_second_sync
    a.out[place(a)] = memory()[gpu::thread()];
}
GPU_INSTANCE(missing_second_sync_kernel, 64, 1, Arguments, missing_second_sync)

GPU_FN void missing_warp_sync(const Arguments& a) {
    memory()[gpu::thread()] = a.x[place(a)];  // OTHER missing_warp_sync
    const float sum = gpu::shuffle_xor(a.x[place(a)], 1);  // which orders nothing
    if (!a.planted) gpu::warp_sync();
    a.out[place(a)] = sum + memory()[gpu::thread() ^ 1];  // FAULT missing_warp_sync
}
GPU_INSTANCE(missing_warp_sync_kernel, 64, 1, Arguments, missing_warp_sync)

GPU_FN void two_writers(const Arguments& a) {
    const int i = a.planted ? gpu::thread() & ~1 : gpu::thread();
    memory()[i] = a.x[place(a)];  // FAULT two_writers, OTHER two_writers
    a.out[place(a)] = a.planted ? 0.0f : memory()[i];
}
GPU_INSTANCE(two_writers_kernel, 64, 1, Arguments, two_writers)

GPU_FN void stage(const Arguments& a) {
    if (gpu::thread() < a.n / 4) {
        const int i = 4 * gpu::thread();
        gpu::copy_async16(memory() + i, a.x + gpu::block() * a.n + i);  // OTHER missing_copy_wait, OTHER wait_without_barrier, FAULT no_wait_at_all
    }
    gpu::copy_commit();
}
GPU_FN void missing_copy_wait(const Arguments& a) {
    stage(a);
    if (a.planted) gpu::copy_wait<1>();
    else gpu::copy_wait<0>();
    gpu::block_sync();
    a.out[place(a)] = memory()[gpu::thread()];  // FAULT missing_copy_wait
    gpu::block_sync();
    gpu::copy_wait<0>();
}
GPU_INSTANCE(missing_copy_wait_kernel, 64, 1, Arguments, missing_copy_wait)

GPU_FN void wait_without_barrier(const Arguments& a) {
    stage(a);
    gpu::copy_wait<0>();
    if (!a.planted) gpu::block_sync();
    a.out[place(a)] = memory()[gpu::thread()];  // FAULT wait_without_barrier
}
GPU_INSTANCE(wait_without_barrier_kernel, 64, 1, Arguments, wait_without_barrier)

GPU_FN void no_wait_at_all(const Arguments& a) {
    stage(a);
    if (!a.planted) gpu::copy_wait<0>();
    a.out[place(a)] = 0;
}
GPU_INSTANCE(no_wait_at_all_kernel, 64, 1, Arguments, no_wait_at_all)

GPU_FN void past_shared_memory(const Arguments& a) {
    memory()[gpu::thread() + (a.planted ? 1 : 0)] = 1;  // FAULT past_shared_memory
    a.out[place(a)] = 0;
}
GPU_INSTANCE(past_shared_memory_kernel, 64, 1, Arguments, past_shared_memory)

GPU_FN void past_a_buffer(const Arguments& a) {
    a.out[place(a)] = a.x[place(a) + (a.planted ? 1 : 0)];  // FAULT past_a_buffer
}
GPU_INSTANCE(past_a_buffer_kernel, 64, 1, Arguments, past_a_buffer)

GPU_FN void before_a_buffer(const Arguments& a) {
    a.out[place(a)] = a.x[place(a) - (a.planted ? 1 : 0)];  // FAULT before_a_buffer
}
GPU_INSTANCE(before_a_buffer_kernel, 64, 1, Arguments, before_a_buffer)

GPU_FN void far_away(const Arguments& a) {
    a.out[place(a)] = a.x[static_cast<int64_t>(place(a)) + (a.planted ? int64_t(1) << 40 : 0)];  // FAULT far_away
}
GPU_INSTANCE(far_away_kernel, 64, 1, Arguments, far_away)

GPU_FN void matrix_outside(const Arguments& a) {
    uint32_t r[2];
    memory()[gpu::thread()] = 0;
    gpu::block_sync();
    gpu::ldmatrix_x2(r, gpu::shared() + 16 * (gpu::lane() & 15) + (a.planted ? 16 : 0));  // FAULT matrix_outside
    a.out[place(a)] = gpu::as_float(r[0]);
}
GPU_INSTANCE(matrix_outside_kernel, 64, 1, Arguments, matrix_outside)

GPU_FN void uninitialised(const Arguments& a) {
    if (!a.planted || gpu::thread() != 5) memory()[gpu::thread()] = a.x[place(a)];
    gpu::block_sync();
    a.out[place(a)] = memory()[gpu::thread()];  // FAULT uninitialised
}
GPU_INSTANCE(uninitialised_kernel, 64, 1, Arguments, uninitialised)

GPU_FN void output_read(const Arguments& a) {
    float v = a.x[place(a)];
    if (a.planted) v += a.out[place(a)];  // FAULT output_read
    a.out[place(a)] = v;
}
GPU_INSTANCE(output_read_kernel, 64, 1, Arguments, output_read)

GPU_FN void input_written(const Arguments& a) {
    float* x = const_cast<float*>(a.x);
    if (a.planted) x[place(a)] = 1;  // FAULT input_written
    a.out[place(a)] = 0;
}
GPU_INSTANCE(input_written_kernel, 64, 1, Arguments, input_written)

GPU_FN void misaligned(const Arguments& a) {
    if (gpu::thread() < 32) {
        const auto* pair = reinterpret_cast<const gpu::Words2*>(a.x + 2 * gpu::thread() + (a.planted && gpu::thread() < 31 ? 1 : 0));
        const gpu::Words2 v = *pair;  // FAULT misaligned
        a.out[place(a)] = gpu::as_float(v.w[0]);
    } else {
        a.out[place(a)] = 0;
    }
}
GPU_INSTANCE(misaligned_kernel, 64, 1, Arguments, misaligned)

GPU_FN void different_operations(const Arguments& a) {
    float v = a.x[place(a)];
    if (a.planted && gpu::lane() < 16) {
        v += gpu::shuffle_xor(v, 1);  // OTHER different_operations
    } else {
        v += gpu::shuffle_xor(v, 1);  // FAULT different_operations
    }
    a.out[place(a)] = v;
}
GPU_INSTANCE(different_operations_kernel, 64, 1, Arguments, different_operations)

GPU_FN void half_a_warp_leaves(const Arguments& a) {
    a.out[place(a)] = 0;
    if (a.planted && gpu::lane() < 16) return;
    a.out[place(a)] = gpu::shuffle_xor(a.x[place(a)], 1);  // FAULT half_a_warp_leaves
}
GPU_INSTANCE(half_a_warp_leaves_kernel, 64, 1, Arguments, half_a_warp_leaves)

GPU_FN void barrier_in_a_branch(const Arguments& a) {
    a.out[place(a)] = 0;
    if (!a.planted || gpu::warp() == 0) {
        gpu::block_sync();  // FAULT barrier_in_a_branch
    }
}
GPU_INSTANCE(barrier_in_a_branch_kernel, 64, 1, Arguments, barrier_in_a_branch)

GPU_FN void two_barriers(const Arguments& a) {
    if (a.planted && gpu::warp() == 0) {
        gpu::block_sync();  // FAULT two_barriers
    } else {
        gpu::block_sync();  // OTHER two_barriers
    }
    a.out[place(a)] = 0;
}
GPU_INSTANCE(two_barriers_kernel, 64, 1, Arguments, two_barriers)

GPU_FN void blocks_write_one_place(const Arguments& a) {
    const int i = a.planted ? gpu::thread() : place(a);
    a.out[i] = a.x[place(a)];  // FAULT blocks_write_one_place, OTHER blocks_write_one_place
}
GPU_INSTANCE(blocks_write_one_place_kernel, 64, 1, Arguments, blocks_write_one_place)

GPU_FN void block_reads_another(const Arguments& a) {
    a.out[place(a)] = a.x[place(a)];  // OTHER block_reads_another
    if (a.planted && gpu::block() == 1) a.out[place(a)] = a.out[gpu::thread()];  // FAULT block_reads_another
}
GPU_INSTANCE(block_reads_another_kernel, 64, 1, Arguments, block_reads_another)

GPU_FN void atomic_and_plain(const Arguments& a) {
    gpu::atomic_add(a.counter, 1);  // OTHER atomic_and_plain
    a.out[place(a)] = 0;
    if (a.planted && gpu::thread() == 63 && gpu::block() == 0) {
        *a.counter = 7;  // FAULT atomic_and_plain
    }
}
GPU_INSTANCE(atomic_and_plain_kernel, 64, 1, Arguments, atomic_and_plain)

// Nothing wrong, but what it costs: lane i reads word 2i (of two wavefronts) or word i.
GPU_FN void bank_conflict(const Arguments& a) {
    memory()[gpu::thread()] = 0;
    gpu::block_sync();
    a.out[place(a)] = memory()[(a.planted ? 2 : 1) * gpu::lane()];  // COST bank_conflict
}
GPU_INSTANCE(bank_conflict_kernel, 64, 1, Arguments, bank_conflict)

// Nothing wrong, but what it costs: one sector for each lane, or for eight.
GPU_FN void strided(const Arguments& a) {
    float v = 0;
    if (gpu::thread() < 8) {
        v = a.x[(a.planted ? 8 : 1) * gpu::thread()];  // COST strided
    }
    a.out[place(a)] = v;
}
GPU_INSTANCE(strided_kernel, 64, 1, Arguments, strided)

// For the sanitizers and the checks of addresses: an index beyond a thread's own array.
GPU_FN void local_array(const Arguments& a) {
    float v[4] = {1, 2, 3, 4};
    for (int i = 0; i < a.n; ++i) v[(i + gpu::thread()) & 3] += a.x[i];
    a.out[place(a)] = v[(gpu::thread() & 3) + (a.planted ? 4 : 0)];  // FAULT local_array
}
GPU_INSTANCE(local_array_kernel, 64, 1, Arguments, local_array)

GPU_FN void signed_overflow(const Arguments& a) {
    const int large = a.planted ? 2147483647 : 1;
    a.out[place(a)] = static_cast<float>(large + a.n);  // FAULT signed_overflow
}
GPU_INSTANCE(signed_overflow_kernel, 64, 1, Arguments, signed_overflow)

// No fault, but numbers that depend on the schedule or on when copies come, for tests of these.
GPU_FN void who_is_last(const Arguments& a) {
    memory()[0] = static_cast<float>(gpu::thread());
    a.out[place(a)] = memory()[0];
}
GPU_INSTANCE(who_is_last_kernel, 64, 1, Arguments, who_is_last)

GPU_FN void copied_at_once(const Arguments& a) {
    stage(a);
    gpu::block_sync();
    a.out[place(a)] = memory()[gpu::thread()];
    gpu::block_sync();
    gpu::copy_wait<0>();
}
GPU_INSTANCE(copied_at_once_kernel, 64, 1, Arguments, copied_at_once)
