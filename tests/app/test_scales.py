"""Several resolutions of a picture against the formula on whole pictures; a second network as a guard."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from cli_files import TINY, photo
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from bench import guard, wide_blur
from swintormer import Swintormer
from swintormer.checkpoint.checkpoint import Checkpoint, read_checkpoint
from swintormer.cli import deblur
from swintormer.cli.deblur import Settings, make_deblurrer
from swintormer.cli.models import MODELS
from swintormer.errors import InputError, SwintormerError
from swintormer.evaluation import heldout
from swintormer.images.reading import read_image
from swintormer.inference import deblurrer as pipeline
from swintormer.inference.choice import coarser_share, most_changed
from swintormer.inference.deblurrer import Deblurrer
from swintormer.inference.memory import resident_bytes
from swintormer.model.config import NetworkConfig

pytestmark = pytest.mark.usefixtures("one_thread")
TILE = 16  # small enough that every scale of the pictures below takes several


class Curve(nn.Module):
    """Stands for a network whose result at a pixel depends on that pixel alone, so that tiles change nothing."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.config = NetworkConfig(in_channels=in_channels, dim=8, window_size=2)
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x**2


def restored(picture: Tensor, scales: int) -> Tensor:
    """The formula of `inference.scales`, for whole pictures (B, 3, H, W)."""
    if scales == 1 or max(picture.shape[2:]) == 1:
        return picture**2
    height, width = picture.shape[2:]
    even = F.pad(picture, (0, width % 2, 0, height % 2), mode="replicate")
    half = F.interpolate(even, (even.shape[2] // 2, even.shape[3] // 2), mode="bicubic", antialias=True)
    change = F.interpolate(restored(half, scales - 1) - half, scale_factor=2, mode="bicubic")
    return (picture + change[..., :height, :width]) ** 2


@pytest.mark.parametrize("scales", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (2, 37), (61, 50), (64, 33)])
def test_scales_are_those_of_the_formula(size, scales):
    picture = torch.rand(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen: list[tuple[int, int]] = []
    deblur = Deblurrer(Curve(), tile=TILE, stride=12, scales=scales)  # type: ignore[arg-type]
    found = deblur(picture, progress=lambda done, total: seen.append((done, total)))
    # The weights with which tiles are blended are of float32; the square doubles an error, at every scale once more.
    bound = 2**scales * torch.finfo(torch.float32).eps
    torch.testing.assert_close(found, restored(picture, scales), rtol=0, atol=bound)
    done, total = zip(*seen, strict=True)
    assert list(done) == sorted(set(done))
    assert set(total) == {done[-1]}


class Sharpener(Curve):
    """Changes what is smooth and above `grain` in scale: a wave of `period` pixels is made stronger, others hardly."""

    def __init__(self, period: float) -> None:
        super().__init__()
        self.period = period

    def forward(self, x: Tensor) -> Tensor:
        frequency = torch.fft.fftfreq(x.shape[-1], dtype=x.dtype).abs() * self.period
        gain = 1 + torch.exp(-((frequency.clamp_min(1e-9).log2() * 2) ** 2))
        return torch.fft.ifft(torch.fft.fft(x) * gain).real


def wave(period: float, side: int = 128) -> Tensor:
    x = torch.arange(side, dtype=torch.float64)
    return (0.5 + 0.2 * torch.cos(2 * torch.pi * x / period)).expand(1, 3, side, side)


@pytest.mark.parametrize(("period", "taken"), [(8, 1), (16, 2), (32, 3)])
def test_the_scale_that_finds_most_to_change_is_taken(period, taken):
    """A network that sharpens waves of eight pixels finds one of 16 at half size, and one of 32 at a quarter."""
    network = Sharpener(8)
    automatic = Deblurrer(network, tile=128, scales="auto")(wave(period))  # type: ignore[arg-type]
    fixed = [Deblurrer(network, tile=128, scales=scales)(wave(period)) for scales in (1, 2, 3)]  # type: ignore[arg-type]
    distances = [float((automatic - other).abs().max()) for other in fixed]
    assert distances[taken - 1] < 0.1 * min(other for number, other in enumerate(distances, 1) if number != taken)


def test_pictures_whose_half_would_be_all_padding_have_one_scale():
    stride = NetworkConfig(in_channels=3, dim=8, window_size=2).stride
    tiles = {}
    for side in (2 * stride - 1, 2 * stride, 4 * stride, 16 * stride):
        picture = torch.rand(1, 3, side, 16 * stride, dtype=torch.float64)

        def seen(_: int, total: int, side: int = side) -> None:
            tiles[side] = total

        Deblurrer(Curve(), tile=1024, scales="auto")(picture, seen)  # type: ignore[arg-type]
    assert list(tiles.values()) == [1, 2, 3, 3]
    Deblurrer(Curve(), tile=1024, scales=9)(
        torch.rand(1, 3, 3, 4, dtype=torch.float64), lambda _, total: seen(0, total, 4)
    )  # type: ignore[arg-type]
    assert tiles[4] == 3, "3x4, 2x2, 1x1"


def test_the_share_of_the_coarser_scale_rises_gradually():
    change = torch.full((1, 3, 4, 4), 0.1)
    shares = [float(coarser_share(change, change / ratio**0.5)) for ratio in torch.linspace(1, 6, 26)]
    assert shares[0] == 0
    assert shares[-1] == 1
    assert max(np.diff(shares)) < 0.2
    assert min(np.diff(shares)) >= 0
    assert float(coarser_share(change / 100, change * 0)) == 0  # too little to matter
    assert float(coarser_share(change, change * 0)) == 1


class Graphed(Sharpener):
    """As a CUDA graph does, gives its result in the same memory every time."""

    def forward(self, x: Tensor) -> Tensor:
        result = super().forward(x)
        if not hasattr(self, "kept") or self.kept.shape != result.shape:
            self.kept = result
        return self.kept.copy_(result)


def test_results_that_last_until_the_next_run():
    picture = wave(18) + 0.1 * wave(8)  # a share of the coarser scale
    found = [Deblurrer(net(8), tile=128, scales="auto")(picture) for net in (Sharpener, Graphed)]  # type: ignore[arg-type]
    assert torch.equal(*found)
    found = [
        Deblurrer(net(8), guard=net(3), tile=128, scales="auto")(picture)  # type: ignore[arg-type]
        for net in (Sharpener, Graphed)
    ]
    assert torch.equal(*found)


class Gain(Curve):
    """Adds so many times the picture."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.gain)


@pytest.mark.parametrize(("gain", "taken"), [(0.1, 0.1), (0.19, 0.19), (0.3, 0.1)])
def test_a_guard_decides_where_the_network_goes_much_further(gain, taken):
    picture = torch.rand(1, 3, 40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = Deblurrer(Gain(gain), guard=Gain(0.1), tile=TILE)(picture)  # type: ignore[arg-type]
    torch.testing.assert_close(found, picture * (1 + taken), rtol=4 * torch.finfo(torch.float32).eps, atol=0)


def test_a_guard_is_asked_at_every_scale_in_evaluation_mode():
    """Of a wave of 16 pixels the second pass, too, is the guard's, which changes nothing at all."""

    class Watched(Curve):
        modes: list[bool]

        def forward(self, x: Tensor) -> Tensor:
            self.modes.append(self.training)
            return x.clone()

    guard = Watched()
    guard.modes = []
    found = Deblurrer(Sharpener(8), guard=guard, tile=128, scales=2)(wave(16))  # type: ignore[arg-type]
    torch.testing.assert_close(found, wave(16), rtol=0, atol=4 * torch.finfo(torch.float32).eps)
    assert guard.modes == 4 * [False], "a part and the whole of 64 and of 128 pixels"
    assert guard.training
    guard.modes = []
    Deblurrer(Sharpener(8), guard=guard, tile=128, scales="auto")(wave(16))  # type: ignore[arg-type]
    assert len(guard.modes) == 5, "32, 64 and 128 pixels: without the coarser change no second pass"


def test_a_guard_is_asked_in_the_second_pass_too():
    class Counted(Sharpener):
        passes = 0

        def forward(self, x: Tensor) -> Tensor:
            self.passes += 1
            return super().forward(x)

    network, guard = Counted(8), Counted(8)
    Deblurrer(network, guard=guard, tile=128, scales="auto")(wave(16))  # type: ignore[arg-type]
    assert network.passes == guard.passes == 4, "32, 64 and 128 pixels, and these again with the coarser change"


class There(torch.Tensor):
    """Stands for a tensor on a GPU: `to` a plain tensor brings it here, and nothing takes both kinds."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        first, *others = (t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
        if func is Tensor.to and others and type(others[0]) is Tensor:
            return first.as_subclass(Tensor).to(others[0])
        if any(type(t) is not There for t in (first, *others)):
            raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_guard_on_a_gpu_of_pictures_in_main_memory(monkeypatch):
    """The network's result once came into the picture's memory before it met the tiles on the GPU.

    With several resolutions the same happened; there only the test below shows it, on a GPU.
    """

    def there(cut, *rest):
        return ends(lambda *span: cut(*span).as_subclass(There), *rest)

    ends = pipeline._Ends
    monkeypatch.setattr(pipeline, "_Ends", there)
    picture = torch.rand(1, 3, 40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = Deblurrer(Gain(0.4), guard=Gain(0.1), tile=TILE)(picture)  # type: ignore[arg-type]
    torch.testing.assert_close(found, picture * 1.1, rtol=4 * torch.finfo(torch.float32).eps, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["small", "strong", "wide"])
def test_models_restore_files_on_a_gpu_as_on_the_cpu(name, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    path = photo(tmp_path / "photo.png")
    here, on_gpu = (
        make_deblurrer(Settings(model=name, device=device, precision="float32")).restore_array(read_image(path).pixels)
        for device in ("cpu", "cuda")
    )
    assert np.abs(here.astype(int) - on_gpu.astype(int)).max() <= 1


class Spot(Curve):
    """Adds `change` to what is white, and notes the sizes that it saw."""

    def __init__(self, change: float) -> None:
        super().__init__()
        self.change = change
        self.saw: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.saw.append(tuple(x.shape[-2:]))
        return x + self.change * (x == 1)


@pytest.mark.parametrize(("limits", "saw"), [(1.5, [(64, 64)]), (3.0, [(64, 64), (128, 128)])])
def test_a_guard_is_asked_about_the_part_that_changes_most_before_the_whole(limits, saw):
    """1.5 times the guard's change is 2.25 times its square: too little to ask on; of 9 times the guard's is taken."""
    picture = torch.zeros(1, 3, 128, 128, dtype=torch.float64)
    picture[:, :, 90:120, 5:35] = 1
    network, guard = Spot(0.1 * limits), Spot(0.1)
    found = Deblurrer(network, guard=guard, tile=128)(picture)  # type: ignore[arg-type]
    assert guard.saw == saw
    taken = network if len(saw) == 1 else guard
    torch.testing.assert_close(found, taken(picture), rtol=0, atol=4 * torch.finfo(torch.float32).eps)


class Slope(Curve):
    """Adds the picture times a factor for what is dark and another for what is bright."""

    def __init__(self, dark: float, bright: float) -> None:
        super().__init__()
        self.dark, self.bright = dark, bright

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + torch.where(x < 0.5, self.dark, self.bright))


def test_a_guard_is_asked_tile_by_tile():
    """The network goes 8 times as far as the guard in both tiles, but in the first not where it changes most."""
    pictures = torch.full((2, 3, 128, 128), 0.4, dtype=torch.float64)
    pictures[0, :, :64, :64] = 0.9
    network, guard = Slope(0.3, 0.2), Slope(0.0, 0.105)
    deblurrers = [Deblurrer(network, guard=guard, tile=128, batch=batch) for batch in (1, 2)]  # type: ignore[arg-type]
    alone, together = (deblurrer(pictures) for deblurrer in deblurrers)
    assert torch.equal(alone, together)
    for index, taken in enumerate((network, guard)):
        expected = taken(pictures[index])
        torch.testing.assert_close(alone[index], expected, rtol=0, atol=4 * torch.finfo(torch.float32).eps)


def test_the_share_of_a_guard_rises_gradually_with_the_part():
    """Where the whole tile is the guard's, the part alone decides: rounding of it must not show."""
    picture = torch.full((1, 3, 128, 128), 0.4, dtype=torch.float64)
    picture[:, :, :64, :64] = 0.9
    network = Slope(0.3, 0.2)
    found = [
        Deblurrer(network, guard=Slope(0.0, 0.1 * gain), tile=128)(picture)  # type: ignore[arg-type]
        for gain in (1 - 1e-6, 1 + 1e-6)
    ]
    assert (found[0] - found[1]).abs().max() < 1e-5
    shares = [
        float((network(picture) - Deblurrer(network, guard=Slope(0.0, 0.2 / ratio**0.5), tile=128)(picture)).max())
        for ratio in torch.linspace(3, 9, 25).tolist()
    ]
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(0.12)
    assert all(0 <= b - a < 0.02 for a, b in pairwise(shares))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("side", [16, 128])
def test_a_guard_whose_result_is_not_finite_ends_the_run(value, side):
    class Broken(Curve):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x == x.max(), value, x)

    picture = torch.rand(1, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(SwintormerError, match="values that are not finite"):
        Deblurrer(Gain(0.1), guard=Broken(), tile=side)(picture)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(1, 1), (1, 128), (128, 1), (33, 128), (128, 65)])
def test_a_guard_of_narrow_pictures(size):
    picture = torch.rand(1, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = Deblurrer(Gain(0.5), guard=Gain(0.1), tile=128)(picture)  # type: ignore[arg-type]
    torch.testing.assert_close(found, picture * 1.1, rtol=4 * torch.finfo(torch.float32).eps, atol=0)


def test_the_part_of_a_tile_that_changes_most():
    change = torch.zeros(3, 3, 100, 140)
    change[0, 1, 95, 3] = 1
    change[1, 2, 30, 139] = -1
    change[2, 0, 45, 70] = 0.1
    change[2, 0, 5, 5] = -0.2
    places = most_changed(change, 40, 60)
    assert places == [
        (slice(60, 100), slice(0, 60)),
        (slice(0, 40), slice(80, 140)),
        (slice(0, 40), slice(0, 60)),
    ]


def test_a_guard_of_two_views_is_compared_with_the_view_that_is_restored():
    class Right(Curve):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :3] + 0.1

    views = torch.rand(1, 6, 40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = Deblurrer(Right(6), guard=Right(6), tile=TILE)(views)  # type: ignore[arg-type]
    torch.testing.assert_close(found, views[:, :3] + 0.1, rtol=0, atol=4 * torch.finfo(torch.float32).eps)


def test_the_memory_of_a_guard_and_of_scales_counts():
    sizes = {"in_channels": 3, "num_blocks": (1, 1, 1, 1), "window_size": 2}
    small, large = (Swintormer(NetworkConfig(**sizes, dim=dim)) for dim in (8, 32))
    alone, guarded, of_large = (
        Deblurrer(net, tile=64, guard=guard)._cost(64, 1, 512, 512)
        for net, guard in ((small, None), (small, large), (large, None))
    )
    assert guarded == of_large + Deblurrer(small)._packed
    on_a_gpu = Deblurrer(small, tile=64, guard=large)
    on_a_gpu.device = torch.device("cuda")  # where the graphs of both, and of a part of a tile, keep their memory
    needs = [resident_bytes(net.config, 64**2, 4) for net in (small, large)]
    assert on_a_gpu._cost(64, 1, 512, 512) == on_a_gpu._packed + sum(needs) + needs[1] // 2
    assert alone < of_large
    costs = [Deblurrer(small, tile=64, scales=scales)._cost(64, 1, 512, 512) for scales in (1, 2, 3)]
    assert costs[1] - costs[0] >= 12 * 128**2, "what a tile at half size covers"
    assert costs[2] - costs[1] >= 12 * 256**2


def test_a_guard_fits_its_network():
    with pytest.raises(InputError, match=r"guard has weights of torch.float32, the network of torch.float64"):
        Deblurrer(Curve(), guard=Curve().float())  # type: ignore[arg-type]
    assert Deblurrer(Swintormer(TINY), guard=Checkpoint(Swintormer(TINY))).guard is not None
    with pytest.raises(InputError, match="guard must be a network of the same channels"):
        Deblurrer(Curve(), guard=Curve(in_channels=6))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Expected a Swintormer"):
        Deblurrer(Curve(), guard=nn.Identity())  # type: ignore[arg-type]


def test_a_share_of_the_restoration_is_mixed_with_the_picture_itself():
    picture = torch.rand(1, 3, 40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Deblurrer(Curve(), scales=2, strength=0.0)(picture), picture)  # type: ignore[arg-type]


def test_a_network_of_two_views_has_one_scale():
    with pytest.raises(InputError, match="networks of one view"):
        Deblurrer(Curve(in_channels=6), scales=2)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="number of scales must be a whole number, found None"):
        Deblurrer(Curve(), scales=None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="number of scales must be at least 1"):
        Deblurrer(Curve(), scales=0)  # type: ignore[arg-type]


def test_the_command_line_takes_scales(run, weights, monkeypatch):
    source = read_image(photo("in.png", side=(50, 70))).pixels
    one, two = (Deblurrer(read_checkpoint(weights), scales=scales).restore_array(source) for scales in (1, 2))
    assert not np.array_equal(one, two)
    for words, expected in (((), one), (("--scales", "2"), two)):
        run("deblur", "in.png", "-o", "out.png", "--weights", weights, *words)
        np.testing.assert_array_equal(read_image("out.png").pixels, expected)
    assert (
        "--scales takes 1 to 4 or auto, found '0'"
        in run("deblur", "in.png", "-o", "b.png", "--scales", "0", code=1).stderr
    )


def test_installed_models_have_their_scales_and_guards(weights, monkeypatch):
    monkeypatch.setattr("swintormer.checkpoint.checkpoint.default_weights", lambda name: weights)
    made = {name: make_deblurrer(Settings(model=name)) for name in ("small", "strong", "wide")}
    assert {name: deblurrer.scales for name, deblurrer in made.items()} == {"small": 1, "strong": 1, "wide": "auto"}
    assert {name for name, deblurrer in made.items() if deblurrer.guard is not None} == {"strong", "wide"}
    assert made["strong"].guard is not made["strong"].net
    assert make_deblurrer(Settings(model="wide", scales=2)).scales == 2
    assert make_deblurrer(Settings(weights=weights)).scales == 1


def test_the_rule_of_leaving_alone_is_for_what_it_was_measured_with(weights, monkeypatch):
    monkeypatch.setattr("swintormer.checkpoint.checkpoint.default_weights", lambda name: weights)
    assert deblur._alone(Settings()) == MODELS["strong"].alone
    assert deblur._alone(Settings(scales=1)) == MODELS["strong"].alone
    assert deblur._alone(Settings(model="small")) == MODELS["small"].alone
    assert deblur._alone(Settings(scales=2)) is None
    assert deblur._alone(Settings(model="wide")) is None


def test_an_exported_model_says_what_it_leaves_out(run, weights, monkeypatch):
    monkeypatch.setattr("swintormer.checkpoint.checkpoint.default_weights", lambda name: weights)
    monkeypatch.setattr("swintormer.export.torch.export_torch", lambda checkpoint, out, tile: out.write_bytes(b"0"))
    said = {model: run("export", "-o", "a.pt2", "--model", model).stderr for model in ("small", "strong", "wide")}
    assert said["small"] == run("export", "-o", "a.pt2").stderr == ""
    assert "deblur also asks small" in said["strong"]
    assert "several resolutions" in said["wide"]


def test_the_bench_of_wide_blur(tmp_path, weights, monkeypatch, capsys):
    monkeypatch.setattr("swintormer.checkpoint.checkpoint.default_weights", lambda name: weights)
    monkeypatch.setattr(wide_blur, "RADII", (1.5,))
    photo(tmp_path / "a.png", side=(64, 64))
    monkeypatch.setattr("sys.argv", ["wide_blur", str(tmp_path), "--model", "strong"])
    wide_blur.main()
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["radius", "scales", "1", "scales", "2", "scales", "3", "scales", "auto", "auto,", "worst"]
    values = row.split()
    assert values[0] == "1.5"
    assert values[1] != values[2]
    assert values[4] == values[5]


def test_the_bench_of_a_guard(tmp_path, weights, monkeypatch, capsys):
    """Network and guard are the same here, so the guard changes nothing; tiles of its own stride it sees whole."""
    monkeypatch.setattr("swintormer.checkpoint.checkpoint.default_weights", lambda name: weights)
    monkeypatch.setattr(guard, "SETS", {"ten": heldout.DEGRADATIONS[:1]})
    photo(tmp_path / "a.png", side=(64, 64))
    monkeypatch.setattr("sys.argv", ["guard", str(tmp_path), "--side", "64"])
    guard.main()
    header, network, by_guard, guarded, share = capsys.readouterr().out.splitlines()
    assert header.split() == ["ten", "sharp"]
    assert len(guarded.split()) == 5
    assert network.split()[1:] == by_guard.split()[1:] == guarded.split()[1:]
    assert float(network.split()[3]) > 10
    assert share == "The guard saw 100% of the pixels that the network saw."
