"""Faults to plant in the kernels: what the tests of the kernels are worth is which of these they catch.

A mutation replaces text of one file. `caught` is how: the beginning of a sentence of the host layer, or "numbers",
where the result alone is wrong: the program is one that a GPU would run as it stands.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from emulator import CUDA

KERNELS = CUDA / "kernels"


class Mutation(NamedTuple):
    """One fault.

    Attributes:
        name: what is wrong.
        file: of csrc/cuda/kernels.
        old, new: texts.
        cases: of test_mutations.py, separated by spaces; one of them, tried in this order, shows the fault.
        caught: see above; alternatives separated by |.
        times: the old text stands in the file exactly so often, and is replaced each time.
        at: or it is replaced at this place alone.
    """

    name: str
    file: str
    old: str
    new: str
    cases: str
    caught: str
    times: int = 1
    at: int | None = None

    def planted(self, text: str) -> str:
        """The file's text with the fault."""
        if self.at is not None:
            assert text.startswith(self.old, self.at)
            return text[: self.at] + self.new + text[self.at + len(self.old) :]
        found = text.count(self.old)
        assert found == self.times, f"{self.file} has changed: {self.old!r} is in it {found} times"
        return text.replace(self.old, self.new)


NOT_THERE = "Race:|Copy not waited for"


CASES_OF = {
    "attention": "block block8",
    "head": "block block8",
    "window_half": "block block8",
    "channel_half": "block block8",
    "tail": "block8 block",
    "tail_wide": "wide",
    "norm_silu_conv3x3": "conv",
    "group_norm": "norm",
}
ORDERING = re.compile(r"gpu::block_sync\(\);|gpu::copy_wait<(.*?)>\(\);")
# Their groups are empty: all copies of the kernel were waited for before.
NEEDLESS = re.compile(r"gpu::copy_wait<0>\(\);\s+(store\(y\)|write\(\));")


def without_order() -> list[Mutation]:
    """Each barrier left out, and each wait for copies one group too short."""
    found = []
    for file in sorted(KERNELS.glob("*.cu*")):
        text, cases = file.read_text(), CASES_OF.get(file.stem, "")
        for match in ORDERING.finditer(text):
            line, at = text.count("\n", 0, match.start()) + 1, match.start()
            if match[1] is None:
                name, new, caught = "no barrier", "", NOT_THERE
            else:
                name, new, caught = "a copy not waited for", f"gpu::copy_wait<{match[1]} + 1>();", "Copy not waited for"
            if not NEEDLESS.match(text, at):
                found.append(Mutation(f"{name}, line {line}", file.name, match[0], new, cases, caught, at=at))
    return found


def of(file: str, cases: str, *rows: tuple[str, ...]) -> list[Mutation]:
    """Rows: caught, name, old and new text, and how often the old one is there if not once."""
    return [Mutation(name, file, old, new, cases, caught, *map(int, times)) for caught, name, old, new, *times in rows]


HEAD = of(
    "head.cuh",
    "block",
    ("numbers", "A: registers swapped", "tokens[m][2 * i + h] = gpu::pack", "tokens[m][i + 2 * h] = gpu::pack"),
    ("numbers", "taps turned round", "w[3 * dy + d + 3]", "w[5 - 3 * dy - d]", "2"),
    ("numbers|Race:", "a column beyond the window", "column + d - 1 < kSide;", "column + d - 1 <= kSide;"),
    ("numbers|Race:", "a row beyond the window", "source < kLast || row < kSide;", "source < kLast || row <= kSide;"),
    ("Race between blocks", "all heads write head 0", " + head * a.head_channels", ""),
    ("numbers", "half of the lanes' squares", "lanes < 32", "lanes < 16"),
    ("Race:", "two lanes write one sum", "if (g == 0) scratch", "if (g <= 1) scratch"),
) + of("head.cuh", "block8", ("Race:", "windows that are not there", "if (!present) return;", ""))
WINDOW = of(
    "window_half.cuh",
    "block",
    ("numbers", "values not transposed", "ldmatrix_x4_trans(r, values", "ldmatrix_x4(r, values"),
    ("numbers", "bias of the row before", "b[i - kTileRows][v]", "b[i][v]"),
    ("numbers", "mask of the first eight keys", "key = (8 * n + 2 * t", "key = (2 * t"),
    ("numbers", "mask a row late", "% kSide >= kSide - a.shift", "% kSide > kSide - a.shift", "2"),
    ("numbers", "sum not rescaled", "sum[m][h] *= shrink;", ""),
    ("numbers", "one for the maximum's power", "gpu::exp2_approx(gpu::quad_max(top[m][h]))", "1.0f"),
    ("Uninitialised", "table one short", "i < kSpan * kSpan; i", "i < kSpan * kSpan - 1; i"),
    ("numbers", "P: registers 1 and 2 swapped", "p[j][m][2 * n + h]", "p[j][m][n + 2 * h]"),
    ("Never ends", "half a warp leaves", "const float more =", "if (gpu::lane() < 16) return;\nconst float more ="),
    ("Divergence|Never ends", "a barrier for one warp", "begin_bias(b);", "if (!gpu::warp()) gpu::block_sync();"),
) + of(
    "window_half.cuh",
    "block8",
    ("numbers", "bias of the other column", "at[0], b[1] = at[-1];", "at[-1], b[1] = at[0];"),
)
CHANNEL = of(
    "channel_half.cuh",
    "block8",
    ("numbers", "norms of k for q", "inverse_norm(window, 0", "inverse_norm(window, 1"),
    ("numbers", "logits of padded channels", "column < a.head_channels ?", "column < 16 ?"),
)
TAIL = of(
    "tail.cuh",
    "block8",
    ("Race:", "pixels that are not there", "if (first + 16 * m + 8 * h + g >= a.pixels) continue;", ""),
    (NOT_THERE, "always the first stage", "in = memory + chunk % 2 * kStage", "in = memory"),
    ("numbers", "the windows' shift forgotten", "{a.height, a.width, a.shift}", "{a.height, a.width, 0}"),
) + of(
    "fragments.cuh", "block8", ("numbers", "B: registers swapped", "a[m], b[0], b[1]);\n", "a[m], b[0], b[2]);\n", "2")
)
WIDE = of(
    "tail_wide.cuh",
    "wide",
    ("Race:", "sums and squares in one place", "mean), 1, row", "mean), 0, row"),
    ("numbers", "each warp makes the first channels", "slice++) + column * kSliceStride", "slice++)", "2"),
)
CONVOLUTION = of(
    "norm_silu_conv3x3.cu",
    "conv",
    ("Race:", "one halo", "to = halo + chunk % 2 * kHaloRows", "to = halo + 0 * kHaloRows"),
    ("numbers", "taps upside down", "row[i + tap]", "row[i + 2 - tap]", "2"),
    ("numbers|Out of bounds", "a column beyond the image", "x < a.width;", "x <= a.width;"),
    ("Out of bounds", "channels beyond the last", "from >= 0 && first_channel(chunk) < a.channels", "from >= 0"),
)
NORM = of(
    "group_norm.cu",
    "norm",
    ("numbers", "half of a warp's sum", "mask > 0; mask", "mask > 1; mask"),
    ("Out of bounds", "threads without a row", "if (at.row < at.rows) {", "if (at.row <= at.rows) {"),
) + of("ddim_step.cu", "step", ("Out of bounds", "a vector too many", "a.count - place >= kVector", "a.count > place"))
MUTATIONS = [*without_order(), *HEAD, *WINDOW, *CHANNEL, *TAIL, *WIDE, *CONVOLUTION, *NORM]
