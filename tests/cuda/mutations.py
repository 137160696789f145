"""Faults to plant in the kernels: what the tests of the kernels are worth is which of these they catch.

A mutation replaces text of one file. `caught` is how: the beginning of a sentence of the host layer, or "numbers",
where the result alone is wrong: the program is one that a GPU would run as it stands.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """One fault.

    Attributes:
        name: what is wrong.
        file: of csrc/cuda/kernels.
        old, new: texts; the old one stands in the file exactly `times` times.
        case: of test_mutations.py, which runs the kernel.
        caught: see above; alternatives separated by |.
    """

    name: str
    file: str
    old: str
    new: str
    case: str
    caught: str
    times: int = 1


RACE = "Race:"
SYNC = "gpu::block_sync();  // "
NOT_THERE = f"{RACE}|Copy not waited for"


def no_barrier(file: str, reason: str, case: str, caught: str = RACE, times: int = 1) -> Mutation:
    """A block_sync, known by its comment, is missing."""
    return Mutation(f"no barrier: {reason}", file, SYNC + reason, "", case, caught, times)


def numbers(name: str, file: str, old: str, new: str, case: str, times: int = 1) -> Mutation:
    """The arithmetic is wrong."""
    return Mutation(name, file, old, new, case, "numbers", times)


HEAD = [
    no_barrier("head.cuh", "the chunk's weights are there for all", "block", NOT_THERE),
    no_barrier("head.cuh", "the chunk's weights are used up", "block"),
    Mutation("waits for one copy too few", "head.cuh", "copy_wait<1>", "copy_wait<2>", "block", "Copy not waited for"),
    Mutation("the last copy", "head.cuh", "copy_wait<0>", "copy_wait<1>", "block", "Copy not waited for"),
    Mutation(
        "half of the zeros", "window_half.cuh", "thread() < 64) H::zeros", "thread() < 32) H::zeros", "block", "Uninit"
    ),
    Mutation(
        "table over the zeros", "head.cuh", "(memory + kRowsBytes + 128)", "(memory + kRowsBytes + 112)", "block", RACE
    ),
    Mutation(
        "a column beyond the window", "head.cuh", "column < kSide;", "column <= kSide;", "block", f"{RACE}|numbers"
    ),
    numbers("taps turned round", "head.cuh", "w[3 * dy + dx + 4]", "w[4 - 3 * dy - dx]", "block", times=2),
    numbers("A: rows g + 8 and columns + 8", "head.cuh", "n[m][h] = gpu::pack", "n[m][2 * h] = gpu::pack", "block"),
    numbers("variance without the mean", "head.cuh", "(v.w[i]) - mean, q", "(v.w[i]), q", "block"),
    Mutation("all heads write head 0", "head.cuh", " + head * a.head_channels", "", "block", "Race between blocks"),
    Mutation("windows that are not there", "head.cuh", "if (!present) return;", "", "block8", RACE),
    numbers(
        "a row down is a column along",
        "head.cuh",
        "row * kSide + column) * kStride",
        "row * kSide + row) * kStride",
        "block8",
    ),
]
WINDOW = [
    no_barrier("window_half.cuh", "q, k, v are whole", "block"),
    no_barrier("window_half.cuh", "k and v are whole", "block"),
    no_barrier("window_half.cuh", "all neighbours are read", "block"),
    numbers(
        "values not transposed", "window_half.cuh", "ldmatrix_x4_trans(r, values", "ldmatrix_x4(r, values", "block"
    ),
    numbers("bias of the other column", "window_half.cuh", "at[0], b[1] = at[-1]", "at[-1], b[1] = at[0]", "block8"),
    numbers("bias of the row before", "window_half.cuh", "b[i - kTileRows][v]", "b[i][v]", "block"),
    numbers("mask of the first eight keys", "window_half.cuh", "key + 8 * n + 2 * t", "key + 2 * t", "block"),
    numbers("mask one row late", "window_half.cuh", ">= border", "> border", "block", times=4),
    numbers("sums not rescaled", "window_half.cuh", "sum[m][h] *= shrink;", "", "block"),
    numbers(
        "one for the maximum's power", "window_half.cuh", "gpu::exp2_approx(gpu::quad_max(top[m][h]))", "1.0f", "block"
    ),
    Mutation(
        "table one short", "window_half.cuh", "i < kSpan * kSpan; i", "i < kSpan * kSpan - 1; i", "block", "Uninit"
    ),
    numbers("P: registers 1 and 2 swapped", "window_half.cuh", "p[j][m][2 * n + h]", "p[j][m][n + 2 * h]", "block"),
    Mutation(
        "half a warp leaves",
        "window_half.cuh",
        "const float more =",
        "if (gpu::lane() < 16) return;\nconst float more =",
        "block",
        "Never ends",
    ),
    Mutation(
        "a barrier for one warp",
        "window_half.cuh",
        "mix(q, scale);",
        "if (!gpu::warp()) gpu::block_sync(); mix(q, scale);",
        "block",
        "Divergence|Never ends",
    ),
]
CHANNEL = [
    no_barrier("channel_half.cuh", "q, k, v are whole", "block8"),
    no_barrier("channel_half.cuh", "all neighbours are read", "block"),
    no_barrier("channel_half.cuh", "q, k and the sums of squares are whole", "block"),
    no_barrier("channel_half.cuh", "the weights are whole", "block8"),
    numbers("half of the lanes' squares", "channel_half.cuh", "lanes < 32", "lanes < 16", "block"),
    Mutation(
        "two lanes write one sum", "channel_half.cuh", "if (g == 0) scratch", "if (g <= 1) scratch", "block", RACE
    ),
    numbers("norms of k for q", "channel_half.cuh", "inverse_norm(window, 0", "inverse_norm(window, 1", "block8"),
    numbers("logits of padded channels", "channel_half.cuh", "column < a.head_channels ?", "column < 16 ?", "block8"),
]
TAIL = [
    numbers(
        "B: registers 1 and 2 swapped",
        "fragments.cuh",
        "(c[m][j], a[m], b[0], b[1]);\n            gpu",
        "(c[m][j], a[m], b[0], b[2]);\n            gpu",
        "block",
    ),
    no_barrier("tail.cuh", "the chunk's weights are there for all", "block", NOT_THERE),
    no_barrier("tail.cuh", "the chunk's weights are used up", "block8"),
    no_barrier("tail.cuh", "the slice's weights are there for all", "block8", NOT_THERE),
    no_barrier("tail.cuh", "the slice's weights are used up", "block"),
    Mutation(
        "waits for one copy too few", "tail.cuh", "copy_wait<1>", "copy_wait<2>", "block8", "Copy not waited for", 2
    ),
    Mutation("the last copy", "tail.cuh", "copy_wait<0>", "copy_wait<1>", "block8", "Copy not waited for", 2),
    Mutation(
        "pixels that are not there",
        "tail.cuh",
        "if (first + 16 * m + 8 * h + g >= a.pixels) continue;",
        "",
        "block8",
        RACE,
    ),
    Mutation(
        "always the first stage", "tail.cuh", "in = memory + chunk % 2 * kStage", "in = memory", "block8", NOT_THERE
    ),
    numbers(
        "the windows' shift forgotten", "tail.cuh", "{a.height, a.width, a.shift}", "{a.height, a.width, 0}", "block8"
    ),
]
WIDE = [
    Mutation(
        "waits for one copy too few",
        "tail_wide.cuh",
        "copy_wait<kStages - 2>",
        "copy_wait<kStages - 1>",
        "wide",
        "Copy not waited for",
    ),
    no_barrier("tail_wide.cuh", "the slice is there for all, and that before it is used up", "wide", NOT_THERE),
    no_barrier("tail_wide.cuh", "the sums are whole, and the attended tokens used up", "wide"),
    no_barrier("tail_wide.cuh", "the squares are whole", "wide"),
    Mutation("sums and squares in one place", "tail_wide.cuh", "share(squares, 1,", "share(squares, 0,", "wide", RACE),
    numbers(
        "every warp makes the first channels",
        "tail_wide.cuh",
        "hidden + k * kSlice, await(slice++) + column * kSliceStride",
        "hidden + k * kSlice, await(slice++)",
        "wide",
    ),
]
CONVOLUTION = [
    Mutation(
        "waits for one copy too few",
        "norm_silu_conv3x3.cu",
        "copy_wait<kStages - 2>",
        "copy_wait<kStages - 1>",
        "conv",
        "Copy not waited for",
    ),
    Mutation("no barrier before a stage", "norm_silu_conv3x3.cu", "gpu::block_sync();\n", "\n", "conv", NOT_THERE),
    Mutation(
        "one halo",
        "norm_silu_conv3x3.cu",
        "to = halo + chunk % 2 * kHaloRows",
        "to = halo + 0 * kHaloRows",
        "conv",
        RACE,
    ),
    numbers("taps upside down", "norm_silu_conv3x3.cu", "row[i + tap]", "row[i + 2 - tap]", "conv", times=2),
    Mutation(
        "a column beyond the image", "norm_silu_conv3x3.cu", "x < a.width;", "x <= a.width;", "conv", "Out of|numbers"
    ),
    Mutation(
        "channels beyond the last",
        "norm_silu_conv3x3.cu",
        "from >= 0 && first_channel(chunk) < a.channels",
        "from >= 0",
        "conv",
        "Out of bounds",
    ),
]
NORM = [
    Mutation(
        "no barrier before the sums are added",
        "group_norm.cu",
        "    gpu::block_sync();\n    float* const out",
        "    float* const out",
        "norm",
        RACE,
    ),
    Mutation(
        "sums overwritten while read",
        "group_norm.cu",
        "gpu::block_sync();  // of_warps may still be read",
        "",
        "norm",
        RACE,
    ),
    Mutation(
        "sums of warps read too early",
        "group_norm.cu",
        "    gpu::block_sync();\n    float sum = 0;",
        "    float sum = 0;",
        "norm",
        RACE,
    ),
    numbers("half of a warp's sum", "group_norm.cu", "mask > 0; mask", "mask > 1; mask", "norm"),
    Mutation(
        "threads without a row",
        "group_norm.cu",
        "if (at.row < at.rows) {",
        "if (at.row <= at.rows) {",
        "norm",
        "Out of bounds",
    ),
    Mutation(
        "a vector beyond the end",
        "ddim_step.cu",
        "a.count - place >= kVector",
        "a.count > place",
        "step",
        "Out of bounds",
    ),
]
MUTATIONS = [*HEAD, *WINDOW, *CHANNEL, *TAIL, *WIDE, *CONVOLUTION, *NORM]
