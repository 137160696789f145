"""Each operation of gpu.h against the PTX ISA, read here a second time: layouts of fragments, rounding, shuffles."""

from pathlib import Path

import numpy as np
import pytest
import torch
from emulator import Emulator, build, build_for_gpus, changed, given, wanted

from swintormer_kernels import native

SOURCE = Path(__file__).parent / "planted" / "operations.cu"
TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
LANES = np.arange(32)
GROUP, IN_GROUP = LANES >> 2, LANES % 4  # the ISA's groupID and threadID_in_group


class Card:
    """`Emulator.run` on a GPU."""

    def __init__(self, image: Path) -> None:
        self.image = str(image)

    def run(self, name, grid, threads, shared, buffers, ints):
        tensors = [b.array if b.array is None else torch.from_numpy(b.array.view(np.uint8)).cuda() for b in buffers]
        native.extension().cuda_launch(
            image=self.image,
            kernel=name,
            device=torch.cuda.current_device(),
            grid=grid,
            threads=threads,
            shared_bytes=shared,
            pointers=[0 if tensor is None else tensor.data_ptr() for tensor in tensors],
            integers=ints,
            floats=[],
            stream=torch.cuda.current_stream().cuda_stream,
        )
        for buffer, tensor in zip(buffers, tensors, strict=True):
            if buffer.access:
                buffer.array.view(np.uint8)[:] = tensor.cpu().numpy()
        return []


@pytest.fixture(scope="module", params=["emulated", pytest.param("card", marks=pytest.mark.gpu)])
def operations(request: pytest.FixtureRequest) -> Emulator | Card:
    if request.param == "emulated":
        return Emulator(build("race", [SOURCE]))
    image = build_for_gpus(SOURCE)
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if native.why_absent():
        pytest.skip(native.why_absent())
    return Card(image)


def launch(library, name, out, a=None, b=None, c=None, n=0, grid=1, shared=0):
    buffers = [given("a", a), given("b", b), given("c", c), out]
    assert library.run(name, grid, 32, shared, buffers, [n]) == []
    return out.array


# PTX ISA 9.0, "Matrix fragments for mma.m16n8k8" and "... mma.m16n8k16 with floating point type": the row and column of
# element i of each lane.
def place_a(depth: int, i: int) -> tuple[np.ndarray, np.ndarray]:
    if depth == 8:
        return (GROUP if i in (0, 1) else GROUP + 8), IN_GROUP * 2 + (i & 1)
    row = GROUP if 0 <= i < 2 or 4 <= i < 6 else GROUP + 8
    return row, IN_GROUP * 2 + (i & 1) + (0 if i < 4 else 8)


def place_b(i: int) -> tuple[np.ndarray, np.ndarray]:
    return IN_GROUP * 2 + (i & 1) + (0 if i < 2 else 8), GROUP


def place_c(i: int) -> tuple[np.ndarray, np.ndarray]:
    return (GROUP if i < 2 else GROUP + 8), IN_GROUP * 2 + (i & 1)


def words(values: torch.Tensor) -> np.ndarray:
    """16-bit values to words of two, the first low."""
    return values.contiguous().view(torch.int16).numpy().view(np.uint32)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("kind", TYPES)
def test_mma(kind: str, depth: int, operations: Emulator | Card) -> None:
    # Whole numbers: their products and sums are exact in float32.
    whole = np.random.default_rng(depth)
    a, b, c = (whole.integers(-64, 65, size).astype(np.float32) for size in ((16, depth), (depth, 8), (16, 8)))
    of_a, of_b = torch.zeros(32, 8), torch.zeros(32, 4)
    for i in range(depth // 2):
        of_a[:, i] = torch.from_numpy(a[place_a(depth, i)])
    for i in range(depth // 4):
        of_b[:, i] = torch.from_numpy(b[place_b(i)])
    of_c = np.stack([c[place_c(i)] for i in range(4)], 1)
    pairs = words(of_a.to(TYPES[kind])), words(of_b.to(TYPES[kind]))
    got = launch(operations, f"mma_k{depth}_{kind}", wanted("out", np.zeros((32, 4), np.float32)), *pairs, of_c)
    product = a @ b + c
    assert np.array_equal(got, np.stack([product[place_c(i)] for i in range(4)], 1))


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "trans"])
@pytest.mark.parametrize("count", [2, 4])
def test_ldmatrix(count: int, transposed: bool, operations: Emulator | Card) -> None:
    # PTX ISA 9.0, "ldmatrix": lanes 8i to 8i + 7 hold the addresses of the rows of matrix i; a lane receives the two
    # elements of row groupID from column 2 threadID_in_group on, of the transposed matrix with .trans.
    memory = np.arange(32 * 8, dtype=np.uint16).reshape(32, 8)
    rows = np.random.default_rng(count).permutation(32).astype(np.uint32)
    name = f"ldmatrix_x{count}_{'trans' if transposed else 'plain'}"
    out = wanted("out", np.zeros((32, count), np.uint32))
    got = launch(operations, name, out, memory.view(np.uint32), rows, shared=512)
    for i in range(count):
        matrix = memory[rows[8 * i : 8 * i + 8]]
        matrix = matrix.T if transposed else matrix
        low, high = (matrix[GROUP, 2 * IN_GROUP + j].astype(np.uint32) for j in (0, 1))
        assert np.array_equal(got[:, i], low | high << 16)


@pytest.mark.parametrize("kind", TYPES)
def test_every_16_bit_number_is_read_and_written(kind: str, operations: Emulator | Card) -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(TYPES[kind])
    out = wanted("out", np.zeros(1 << 16, np.float32))
    got = launch(operations, f"unpack_{kind}", out, words(every), n=1 << 15, grid=4)
    assert np.array_equal(got, every.float().numpy(), equal_nan=True)
    out = wanted("out", np.zeros(1 << 15, np.uint32))
    back = launch(operations, f"pack_{kind}", out, c=got, n=1 << 15, grid=4)
    number = ~every.isnan().numpy()
    assert np.array_equal(back.view(np.uint16)[number], words(every).view(np.uint16)[number])
    assert (back.view(np.uint16)[~number] == 0x7FFF).all()  # PTX ISA, "cvt": NaN is the canonical one


@pytest.mark.parametrize("kind", TYPES)
def test_rounding_is_to_nearest_even(kind: str, operations: Emulator | Card) -> None:
    # Every number of the type, halfway to the next one, and a little less and more than halfway.
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(TYPES[kind]).double()
    numbers = every[every.isfinite()].unique()
    halves = ((numbers[1:] + numbers[:-1]) / 2).float()
    inf = torch.full_like(halves, torch.inf)
    values = torch.cat(
        [halves, halves.nextafter(inf), halves.nextafter(-inf), torch.tensor([65519.96, 65520, 3e38, -1e5])]
    )
    values = torch.cat([values, values[:1]]) if len(values) % 2 else values
    out = wanted("out", np.zeros(len(values) // 2, np.uint32))
    got = launch(operations, f"pack_{kind}", out, c=values.numpy(), n=len(values) // 2, grid=4)
    assert np.array_equal(got, words(values.to(TYPES[kind])))


def test_functions(operations: Emulator | Card) -> None:
    v = np.random.default_rng(0).uniform(-20, 20, 32).astype(np.float32)
    v[:3] = -np.inf, -140, 0  # whose power is subnormal: the GPU's is 0
    quads = v.astype(np.float64).reshape(8, 4)
    eps = float(np.finfo(np.float32).eps)
    with np.errstate(all="ignore"):
        want = [  # and how many units of the last place the approximation may be away
            (np.where(v < -126, 0, np.exp2(v.astype(np.float64))), 2),
            (1 / np.sqrt(v.astype(np.float64)), 2),
            (np.sqrt(v), 1),
            (np.maximum(v, 1), 0),
            (quads.sum(1).repeat(4), 0),
            (quads.max(1).repeat(4), 0),
            (v[LANES ^ 16], 0),
            (v[LANES ^ 5], 0),
            (v[4 * (LANES & 7) + 3], 0),
            (v[2 * (LANES & 15) + 1], 0),
        ]
    got = launch(operations, "functions_kernel", wanted("out", np.zeros((10, 32), np.float32)), c=v)
    size_of_sums = 3 * eps * np.abs(quads).sum(1).repeat(4)  # three roundings
    for i, (right, units) in enumerate(want):
        with np.errstate(invalid="ignore"):
            close = size_of_sums if i == 4 else units * eps * np.abs(right)
            same = (got[i] == right) | (np.isnan(got[i]) & np.isnan(right))
            assert (same | (np.isfinite(right) & (np.abs(got[i] - right) <= close))).all(), i


def test_atomics(operations: Emulator | Card) -> None:
    out = changed("out", np.array([0, -1000, 1000], np.int32))
    got = launch(operations, "atomics_kernel", out, n=7, grid=3)
    assert got.tolist() == [sum(range(-7, 89)), 88, -7]


def test_a_launch_that_cannot_be_is_refused() -> None:
    operations = Emulator(build("race", [SOURCE]))
    out = wanted("out", np.zeros(4, np.float32))
    for sizes, why in [((1, 64, 0), "64 threads a block, made for 32"), ((0, 32, 0), "at least one block")]:
        with pytest.raises(ValueError, match=why):
            operations.run("functions_kernel", *sizes, [out] * 4, [1])
    with pytest.raises(ValueError, match="there is no kernel nothing"):
        operations.run("nothing", 1, 32, 0, [out] * 4, [1])
    with pytest.raises(ValueError, match="bytes of arguments"):
        operations.run("functions_kernel", 1, 32, 0, [out] * 3, [1])
    with pytest.raises(ValueError, match="shared memory, more than any GPU has"):
        operations.run("functions_kernel", 1, 32, 300_000, [out] * 4, [1])
