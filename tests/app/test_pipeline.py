"""Tiled inference: exact at the seams, the release's numbers, any size and layout, and memory that stays flat."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from swintormer.checkpoint.checkpoint import Checkpoint
from swintormer.errors import InputError, SwintormerError
from swintormer.execution.tiling import Blend
from swintormer.inference import deblurrer
from swintormer.inference.deblurrer import Deblurrer
from swintormer.model.config import NetworkConfig
from swintormer.model.network import Swintormer
from swintormer_kernels import use_backend
from swintormer_kernels.testing.timing import peak_memory

BLENDS = get_args(Blend)
EPS = torch.finfo(torch.float32).eps
TINY = NetworkConfig(
    in_channels=3, dim=8, num_blocks=(1, 2, 1, 1), num_refinement_blocks=1, heads=(1, 1, 2, 2), window_size=2
)


class Stub(nn.Module):
    """Stands for a network: a function of a tile, and a record of the batches it saw."""

    def __init__(self, function: Callable[[Tensor], Tensor] = lambda x: x[:, :3], in_channels: int = 3) -> None:
        super().__init__()
        self.config = NetworkConfig(in_channels=in_channels, dim=8, window_size=2)
        self.weight = nn.Parameter(torch.zeros(()))
        self.function = function
        self.batches: list[torch.Size] = []
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(x.shape)
        self.modes.append(self.training)
        return self.function(x)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny() -> Swintormer:
    torch.manual_seed(1)
    return Swintormer(TINY).eval()


def test_golden_tiles(oracle: Path) -> None:
    """The released network under the released sliding window, 12 tiles over 300x410."""
    state = load_file(oracle / "network_dim16_window8.safetensors")
    golden = load_file(oracle / "tiles_128_stride110.safetensors")
    config = NetworkConfig(dim=16, num_blocks=(1, 2, 2, 2), num_refinement_blocks=2, window_size=8)
    net = Swintormer(config)
    net.load_state_dict({name.removeprefix("param."): t for name, t in state.items() if name.startswith("param.")})
    deblur = Deblurrer(net, tile=128, stride=110, blend="uniform")

    origins = [deblur.plan(300, 410).grid.origin(*tile) for tile in deblur.plan(300, 410).grid]
    assert origins == [tuple(origin) for origin in golden["out.tile_origins"].tolist()]

    # The golden files are float64 results. The bound is the float32 error of the reference on its golden pass, untiled,
    # which tests/app/test_network.py compares with the bound that the README of the golden files gives.
    with torch.inference_mode(), use_backend("reference"):
        own_error = _relative(net(state["in.x"]), state["out.y"])
    assert _relative(deblur(golden["in.x"]), golden["out.y"]) <= 2 * own_error


def _relative(result: Tensor, truth: Tensor) -> float:
    return ((result.double() - truth.double()).norm() / truth.double().norm()).item()


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    tile=st.integers(1, 64),
    share=st.floats(0.3, 1),
    batch=st.integers(1, 5),
    images=st.integers(0, 2),
    blend=st.sampled_from(BLENDS),
)
def test_identity_gives_the_image_back(
    height: int, width: int, tile: int, share: float, batch: int, images: int, blend: Blend
) -> None:
    tile = max(tile, -(-max(height, width) // 12))  # at most some hundred tiles
    deblur = Deblurrer(Stub(), tile=tile, stride=max(1, int(tile * share)), blend=blend, batch=batch)
    x = torch.rand(images, 3, height, width)
    y = deblur(x)
    assert y.shape == x.shape
    # At most 4 tiles along an axis meet over a pixel here, each with three roundings; values and weights are at most 1.
    assert (y - x).abs().max() <= 3 * 16 * EPS if images else y.numel() == 0


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (255, 257), (1, 1000)])
@pytest.mark.parametrize("blend", BLENDS)
def test_awkward_sizes_through_the_network(tiny: Swintormer, size: tuple[int, int], blend: Blend) -> None:
    x = torch.rand(1, 3, *size)
    y = Deblurrer(tiny, tile=128, blend=blend)(x)
    assert y.shape == x.shape
    assert torch.isfinite(y).all()
    if max(size) <= 128:  # one tile: nothing but the network
        with torch.inference_mode():  # as the pipeline: with gradients, other kernels round otherwise on some CPUs
            assert torch.equal(y, tiny(x))


def test_one_tile_is_the_network_itself(tiny: Swintormer) -> None:
    x = torch.rand(2, 3, 50, 70)
    with torch.no_grad():
        expected = torch.cat([tiny(x[:1]), tiny(x[1:])])
    assert torch.equal(Deblurrer(tiny, tile=128, batch=1)(x), expected)


def test_same_result_for_any_batch_size(tiny: Swintormer) -> None:
    x = torch.rand(1, 3, 60, 80)
    double = Swintormer(TINY).double()
    double.load_state_dict(tiny.state_dict())
    truth = Deblurrer(double, tile=32)(x.double())
    single = Deblurrer(tiny, tile=32, batch=1)(x)
    own_error = (single - truth).abs().max()
    for batch in (2, 5, 16):
        # The sum of both errors, of which the other may be twice as large: another number of tiles takes other kernels.
        assert (Deblurrer(tiny, tile=32, batch=batch)(x) - single).abs().max() <= 3 * own_error


def test_batches_run_on_across_rows_and_images_and_the_last_is_partial() -> None:
    net = Stub()
    Deblurrer(net, tile=8, stride=8, batch=4)(torch.rand(2, 3, 24, 24))
    assert [shape[0] for shape in net.batches] == [4, 4, 4, 4, 2]


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3),
        lambda x: x.flip(3),
        lambda x: x[:1].expand(3, -1, -1, -1),
        lambda x: torch.nn.functional.pad(x, (1, 1, 1, 1))[..., 1:-1, 1:-1],
    ],
)
def test_any_strides(layout: Callable[[Tensor], Tensor]) -> None:
    x = layout(torch.rand(2, 3, 30, 41))
    deblur = Deblurrer(Stub(), tile=16, stride=12)
    assert torch.equal(deblur(x), deblur(x.contiguous()))


def test_dtype_of_the_image_stays_and_no_graph_is_kept(tiny: Swintormer) -> None:
    x = torch.rand(1, 3, 20, 20, dtype=torch.float64, requires_grad=True)
    y = Deblurrer(copy.deepcopy(tiny).double())(x)
    assert y.dtype == torch.float64
    assert not y.requires_grad
    assert not y.is_inference()  # may be used in training afterwards


@pytest.mark.parametrize(
    "image", [torch.rand(3, 8, 8), torch.rand(1, 6, 8, 8), torch.rand(1, 3, 0, 8), torch.zeros(1, 3, 8, 8).byte()]
)
def test_tensors_of_another_kind_are_refused(image: Tensor) -> None:
    with pytest.raises(InputError, match="Expected an image"):
        Deblurrer(Stub())(image)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_dtypes_are_those_of_the_network(tiny: Swintormer, dtype: torch.dtype, autocast: bool) -> None:
    """What the network takes, `Deblurrer` takes, and it refuses the rest in the same words."""
    image = torch.zeros(1, 3, 20, 20, dtype=dtype)
    said = []
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for call in (tiny, Deblurrer(tiny)):
            try:
                call(image)
            except InputError as error:
                said.append(str(error))
    assert len(said) in (0, 2)
    assert len(set(said)) == (0 if autocast and dtype in (torch.float16, torch.bfloat16) else 1)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda x: 255 * x, "found values from 0 to 255"),
        (lambda x: 2 * x - 1, "found values from -1 to 1"),
        (lambda x: x / 0, "NaN or infinite"),
        (lambda x: x.masked_fill(x == 1, math.inf), "NaN or infinite"),
        (lambda x: x.masked_fill(x == 1, math.nan), "NaN or infinite"),
    ],
)
def test_values_that_are_no_picture_are_refused(change: Callable[[Tensor], Tensor], found: str) -> None:
    image = torch.linspace(0, 1, 2 * 3 * 9 * 8).view(2, 3, 9, 8)
    stub = Stub()
    assert Deblurrer(stub)(1.2 * image - 0.1).shape == image.shape  # noise, or what resampling adds
    del stub.batches[:]
    with pytest.raises(InputError, match=found) as error:
        Deblurrer(stub)(change(image))
    assert "\n" not in str(error.value)
    assert stub.batches == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_result_that_is_not_finite_is_no_picture(bad: float) -> None:
    """One sample of the last tile is enough."""

    def damaged(x: Tensor) -> Tensor:
        return x.masked_fill(x == 1, bad)

    pixels = np.zeros((20, 20, 3), np.uint8)
    deblur = Deblurrer(Stub(damaged), tile=16, stride=12, batch=1)
    assert not deblur.restore_array(pixels).any()
    pixels[-1, -1, 1] = 255
    with pytest.raises(SwintormerError, match="not finite"):
        deblur.restore_array(pixels)
    with pytest.raises(SwintormerError, match="not finite"):
        deblur(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)


# --- pictures from files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("blend", BLENDS)
def test_identity_keeps_every_sample(dtype: type, channels: int, blend: Blend) -> None:
    full = np.iinfo(dtype).max
    pixels = np.random.default_rng(0).integers(0, full, (45, 67, channels), dtype=dtype, endpoint=True)
    result = Deblurrer(Stub(), tile=16, stride=11, blend=blend).restore_array(pixels)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, pixels)
    assert not np.shares_memory(result, pixels)


def test_array_and_tensor_agree(tiny: Swintormer) -> None:
    pixels = np.random.default_rng(0).integers(0, 65535, (40, 90, 3), dtype=np.uint16, endpoint=True)
    deblur = Deblurrer(tiny, tile=64)
    from_tensor = deblur(torch.from_numpy(pixels.astype(np.float32) / 65535).permute(2, 0, 1)[None])
    expected = (from_tensor * 65535).round().clamp(0, 65535)[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(deblur.restore_array(pixels), expected.astype(np.uint16))


@pytest.mark.parametrize(("value", "expected"), [(-0.2, 0), (1.7, 255), (0.5, 128), (100.4 / 255, 100)])
def test_results_are_rounded_and_clamped(value: float, expected: int) -> None:
    result = Deblurrer(Stub(lambda x: torch.full_like(x, value))).restore_array(np.zeros((5, 4, 3), np.uint8))
    assert (result == expected).all()


def test_gray_is_shown_as_three_channels_and_averaged_back() -> None:
    seen: list[Tensor] = []

    def spread(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x + torch.tensor([-30, 0, 120]).view(3, 1, 1) / 255  # mean 30

    pixels = np.full((6, 5, 1), 100, np.uint8)
    result = Deblurrer(Stub(spread)).restore_array(pixels)
    assert result.shape == (6, 5, 1)
    assert (result == 130).all()
    assert torch.equal(seen[0], torch.full((1, 3, 6, 5), 100 / 255))


# --- strength ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_strength_mixes_light(dtype: type, channels: int) -> None:
    """Half of black and half of white is the sRGB value of half of the light, and not of half of the value."""
    full = np.iinfo(dtype).max
    deblur = Deblurrer(Stub(torch.ones_like), tile=16, strength=0.5)
    mixed = deblur.restore_array(np.zeros((20, 30, channels), dtype))
    middle = 1.055 * 0.5 ** (1 / 2.4) - 0.055
    assert (mixed == round(middle * full)).all()
    tensor = deblur(torch.zeros(2, 3, 20, 30))
    # A power and a product of numbers below one, each rounded a few times.
    torch.testing.assert_close(tensor, torch.full_like(tensor, middle), rtol=0, atol=16 * EPS)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_ends_of_strength_are_the_picture_and_the_restoration(tiny: Swintormer, dtype: type, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (40, 50, channels), dtype, endpoint=True)
    restored = Deblurrer(tiny, tile=32).restore_array(pixels)
    assert (restored != pixels).any()
    np.testing.assert_array_equal(Deblurrer(tiny, tile=32, strength=1).restore_array(pixels), restored)
    np.testing.assert_array_equal(Deblurrer(tiny, tile=32, strength=0).restore_array(pixels), pixels)
    x = torch.rand(1, 3, 40, 50)
    assert torch.equal(Deblurrer(tiny, tile=32, strength=0)(x), x)


def test_strength_mixes_a_pair_with_the_view_that_is_restored() -> None:
    left, right = np.full((4, 4, 3), 10, np.uint8), np.full((4, 4, 3), 200, np.uint8)
    deblur = Deblurrer(Stub(lambda x: x[:, 3:], in_channels=6), strength=0)
    assert (deblur.restore_array(left, right=right) == 200).all()


@pytest.mark.parametrize("strength", [-0.1, 1.01, float("nan")])
def test_a_strength_beyond_its_range_is_refused(strength: float) -> None:
    with pytest.raises(SwintormerError, match="strength must be 0"):
        Deblurrer(Stub(), strength=strength)


def test_pair_is_right_view_first() -> None:
    left, right = np.full((4, 4, 3), 10, np.uint8), np.full((4, 4, 3), 200, np.uint8)
    first = Deblurrer(Stub(lambda x: x[:, :3], in_channels=6)).restore_array(left, right=right)
    second = Deblurrer(Stub(lambda x: x[:, 3:], in_channels=6)).restore_array(left, right=right)
    assert (first == 200).all()
    assert (second == 10).all()


def test_views_without_their_alpha_are_taken_as_they_are() -> None:
    rgba = np.random.default_rng(0).integers(0, 255, (9, 8, 4), dtype=np.uint8)
    result = Deblurrer(Stub(), tile=4, stride=3).restore_array(rgba[..., :3])
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, rgba[..., :3])


PIXELS = np.zeros((4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("channels", "arguments", "named"),
    [
        (6, (PIXELS,), "right"),
        (3, (PIXELS, PIXELS), "right"),
        (6, (PIXELS, PIXELS[:3]), "5x4x3 uint8 and 5x3x3 uint8"),
        (6, (PIXELS, PIXELS.astype(np.uint16)), "uint16"),
        (4, (PIXELS,), "4"),
        (3, (PIXELS[..., 0],), "shape"),
        (3, (np.zeros((4, 5, 4), np.uint8),), "shape"),
        (3, (np.zeros((0, 5, 3), np.uint8),), "shape"),
        (3, (PIXELS.astype(np.float32),), "float32"),
        (3, (PIXELS.tolist(),), "found an object of list"),
        (3, (None,), "found None"),
        (3, (torch.from_numpy(PIXELS),), "found an object of torch.Tensor"),
        (6, (PIXELS, "right.png"), "found 'right.png'"),
    ],
)
def test_pictures_that_do_not_fit_are_one_sentence(channels: int, arguments: tuple, named: str) -> None:
    with pytest.raises(SwintormerError, match=named) as error:
        Deblurrer(Stub(in_channels=channels)).restore_array(*arguments)
    assert "\n" not in str(error.value)


# --- choices -------------------------------------------------------------------------------------------------------


def test_default_tile_is_the_training_tile_else_the_papers(tiny: Swintormer) -> None:
    assert Deblurrer(tiny).plan(1120, 1680).tile == 256
    assert len(Deblurrer(tiny).plan(1120, 1680).grid) == 40
    plan = Deblurrer(Checkpoint(Stub(), training_tile=128)).plan(1000, 1000)
    assert (plan.tile, plan.stride, plan.batch) == (128, 110, 4)


@pytest.mark.parametrize("size", [(1, 20000), (20000, 1)])
def test_tiles_of_a_narrow_picture_are_longer(tiny: Swintormer, size: tuple[int, int]) -> None:
    plan = Deblurrer(tiny).plan(*size)
    assert plan.tile == 256**2 // TINY.stride
    assert len(plan.grid) == 10
    assert len(Deblurrer(tiny, tile=256).plan(*size).grid) == 91, "as asked for"
    deblur = Deblurrer(tiny, memory=10**8)
    limited = deblur.plan(*size)
    assert limited.tile > deblurrer.LARGEST_AUTO_TILE
    assert deblur._cost(limited.tile, limited.batch, *size) <= 10**8
    assert Deblurrer(tiny).plan(1, 300).tile == 320, "no longer than the picture"
    x = torch.rand(1, 3, 3, 900)
    assert torch.equal(Deblurrer(tiny)(x), Deblurrer(tiny, tile=912)(x)), "one tile"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"tile": 0}, "tile"),
        ({"tile": "large"}, "large"),
        ({"stride": 0}, "stride"),
        ({"tile": 64, "stride": 65}, "stride"),
        ({"blend": "gaussian"}, "gaussian"),
        ({"batch": 0}, "batch"),
        ({"memory": 0}, "memory"),
        ({"tile": 64.5}, "found 64.5 .float."),
        ({"stride": "12"}, "found '12' .str."),
        ({"batch": "4"}, "found '4' .str."),
        ({"batch": "auto"}, "found 'auto' .str."),
        ({"memory": "2G"}, "found '2G' .str."),
        ({"prior": None}, "found None"),
        ({"device": "nowhere"}, "nowhere"),
        ({"device": "meta"}, "cpu, cuda or mps"),
        ({"device": "vulkan"}, "cpu, cuda or mps"),
        ({"device": torch.device("meta")}, "cpu, cuda or mps"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": "mps:3"}, "mps:3"),
    ],
)
def test_bad_settings_are_told_before_any_image(arguments: dict, named: str) -> None:
    with pytest.raises(SwintormerError, match=named) as error:
        Deblurrer(Stub(), **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("net", "found"),
    [
        (None, "found None."),
        ("w.safetensors", r"found 'w.safetensors' \(str\); read a file with read_checkpoint."),
        (torch.nn.Identity(), "found an object of torch.nn.modules.linear.Identity."),
        (Swintormer, "found an object of type."),
        ({}, "found an object of dict."),
        (Checkpoint(None), "found None."),
    ],
)
def test_what_is_no_network_is_said_in_one_sentence(net: object, found: str) -> None:
    with pytest.raises(InputError, match=f"Expected a Swintormer or a Checkpoint, {found}") as error:
        Deblurrer(net)
    assert "\n" not in str(error.value)


def test_automatic_tile_grows_with_the_budget_and_stays_within_it(tiny: Swintormer) -> None:
    tiles = []
    for budget in (40e6, 60e6, 100e6, 200e6, 10e9):
        deblur = Deblurrer(tiny, memory=int(budget))
        plan = deblur.plan(3000, 4000)
        assert plan.tile % TINY.stride == 0
        assert deblur._cost(plan.tile, plan.batch, 3000, 4000) <= budget
        tiles.append(plan.tile)
    assert tiles == sorted(tiles)
    assert tiles[0] < tiles[2]
    assert tiles[-1] == deblurrer.LARGEST_AUTO_TILE
    assert Deblurrer(tiny, tile="auto", memory=10**10).plan(7, 300).tile == 320


@pytest.mark.parametrize("size", [(50, 40), (40, 50), (1, 1), (99, 100)])
def test_any_stride_fits_where_one_automatic_tile_covers_the_picture(tiny: Swintormer, size: tuple[int, int]) -> None:
    deblur = Deblurrer(tiny, tile="auto", stride=200, memory=10**10)
    assert len(deblur.plan(*size).grid) == 1
    assert deblur(torch.zeros(1, 3, *size)).shape == (1, 3, *size)


def test_automatic_tile_is_no_shorter_than_the_stride(tiny: Swintormer) -> None:
    free = Deblurrer(tiny, memory=60_000_000).plan(3000, 4000)
    assert free.tile < 512
    stride = free.tile - TINY.stride
    plan = Deblurrer(tiny, stride=stride, memory=60_000_000).plan(3000, 4000)
    assert (plan.tile, plan.stride) == (free.tile, stride)
    with pytest.raises(SwintormerError, match=r"smallest for a stride of 500.*57\.3 MiB.*smaller stride") as error:
        Deblurrer(tiny, stride=500, memory=60_000_000).plan(3000, 4000)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tile", ["auto", 64])
def test_budget_below_one_tile_is_one_sentence(tiny: Swintormer, tile: int | str) -> None:
    with pytest.raises(SwintormerError, match=r"976\.6 KiB") as error:
        Deblurrer(tiny, tile=tile, memory=10**6).plan(500, 500)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("tile", "batch"), [(16, 16), (100, 6), (128, 4), (256, 1), (512, 1)])
def test_a_cpu_takes_256x256_pixels_at_once(tiny: Swintormer, tile: int, batch: int) -> None:
    assert Deblurrer(tiny, tile=tile).plan(1000, 1000).batch == batch


def test_budget_for_batches_on_a_device(tiny: Swintormer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off the CPU the batch fills the budget; what is free is asked from the device."""
    deblur = Deblurrer(tiny, tile=256)
    deblur.device = torch.device("cuda")
    free = {"bytes": 10**12}
    monkeypatch.setattr(deblurrer, "available_bytes", lambda device: free["bytes"])
    assert deblur.plan(1000, 1000).batch == deblurrer.LARGEST_AUTO_BATCH
    free["bytes"] = 2 * deblur._cost(256, 3, 1000, 1000)
    assert deblur.plan(1000, 1000).batch == 3


def test_automatic_tile_asks_what_is_free(tiny: Swintormer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deblurrer, "available_bytes", lambda device: 2 * 10**8)
    few = Deblurrer(tiny, tile="auto").plan(3000, 3000)
    assert few.tile == Deblurrer(tiny, memory=10**8).plan(3000, 3000).tile


# --- progress, interrupts, modes, memory ---------------------------------------------------------------------------


def test_progress_counts_tiles() -> None:
    seen: list[tuple[int, int]] = []
    pixels = np.zeros((16, 24, 3), np.uint8)
    Deblurrer(Stub(), tile=8, stride=8, batch=4).restore_array(pixels, progress=lambda *call: seen.append(call))
    assert seen == [(4, 6), (6, 6)]


def test_interrupt_leaves_the_deblurrer_usable_and_the_mode_as_it_was() -> None:
    net = Stub().train()
    deblur = Deblurrer(net, tile=8, stride=6)
    pixels = np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deblur.restore_array(pixels, progress=interrupt)
    assert net.training
    assert net.modes == [False]
    np.testing.assert_array_equal(deblur.restore_array(pixels), pixels)


@pytest.mark.parametrize("turn", [lambda size: size, lambda size: size[::-1]], ids=["high", "wide"])
def test_memory_does_not_grow_with_the_longer_side(turn: Callable[[tuple[int, int]], tuple[int, int]]) -> None:
    """Sixteen times the pixels, the same peak: only the output, which numpy holds, grows."""
    deblur = Deblurrer(Stub(), tile=32, stride=28, batch=1)
    pictures = [np.zeros((*turn(size), 3), np.uint8) for size in ((100, 100), (1600, 100))]
    peaks = [peak_memory(partial(deblur.restore_array, pixels)) for pixels in pictures]
    weights = 4 * 32 * (1600 // 28 + 1)  # the only thing as long as the image: a weight for each row of each tile
    assert peaks[1] <= peaks[0] + weights


def test_memory_beside_the_tiles_at_work_is_one_band() -> None:
    deblur = Deblurrer(Stub(), tile=32, stride=28, batch=1)
    tile, band = 4 * 3 * 32 * 32, 4 * 3 * 32 * 1000
    weights = 2 * 4 * 32 * (1000 // 28 + 1)
    # A tile as it was cut, in its batch, and weighted; the network here adds nothing.
    peak = peak_memory(lambda: deblur.restore_array(np.zeros((1000, 1000, 3), np.uint8)))
    assert peak <= band + weights + 3 * tile


def test_tiles_go_to_the_device_in_batches_and_never_the_image() -> None:
    net = Stub()
    Deblurrer(net, tile=32, stride=28, batch=3).restore_array(np.zeros((200, 300, 3), np.uint8))
    assert max(shape.numel() for shape in net.batches) == 3 * 3 * 32 * 32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device_memory_holds_tiles_only(tiny: Swintormer) -> None:
    deblur = Deblurrer(Swintormer(TINY), tile=64, batch=2, device="cuda")
    peaks = []
    for height in (200, 3200):
        torch.cuda.reset_peak_memory_stats()
        deblur.restore_array(np.zeros((height, 200, 3), np.uint8))
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] == peaks[0]
