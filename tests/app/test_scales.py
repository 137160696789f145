"""Several resolutions of a picture against the formula on whole pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cli_files import photo
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from bench import wide_blur
from swintormer import Swintormer
from swintormer.checkpoint.checkpoint import read_checkpoint
from swintormer.cli import deblur
from swintormer.cli.deblur import Settings, make_deblurrer
from swintormer.cli.models import MODELS
from swintormer.errors import InputError
from swintormer.images.reading import read_image
from swintormer.inference.deblurrer import Deblurrer
from swintormer.inference.memory import resident_bytes
from swintormer.inference.scales import coarser_share
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
    picture = wave(12)  # of whose tiles 0.28 come from the coarser scale
    found = [Deblurrer(net(8), tile=128, scales="auto")(picture) for net in (Sharpener, Graphed)]  # type: ignore[arg-type]
    assert torch.equal(*found)


class There(torch.Tensor):
    """Stands for a tensor on a GPU: operations do not take it together with others, but for numbers."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        first, *others = (t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
        if func is Tensor.to and others and type(others[0]) is Tensor:
            return first.as_subclass(Tensor).to(others[0])
        if any(type(t) is not There and t.ndim for t in (first, *others)):
            raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_scales_on_a_gpu_of_pictures_in_main_memory(monkeypatch):
    """The network's result once came into the picture's memory before it met the tiles on the GPU."""

    class Away(Sharpener):
        def forward(self, x: Tensor) -> Tensor:
            assert type(x) is There
            return super().forward(x.as_subclass(Tensor)).as_subclass(There)

    def to(tensor, *places, **more):
        if places and places[0] == gpu:
            return plain(tensor, *places[1:], **more).as_subclass(There)
        return plain(tensor, *places, **more)

    picture, gpu, plain = wave(12), torch.device("cuda"), Tensor.to
    expected = Deblurrer(Sharpener(8), tile=128, scales="auto")(picture)  # type: ignore[arg-type]
    deblurrer = Deblurrer(Away(8), tile=128, scales="auto", memory=2**30)  # type: ignore[arg-type]
    deblurrer.device = gpu
    monkeypatch.setattr(Tensor, "to", to)
    found = deblurrer(picture)
    assert type(found) is Tensor
    assert torch.equal(found, expected)


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


def test_the_memory_of_scales_counts():
    net = Swintormer(NetworkConfig(in_channels=3, num_blocks=(1, 1, 1, 1), window_size=2, dim=8))
    costs = [Deblurrer(net, tile=64, scales=scales)._cost(64, 1, 512, 512) for scales in (1, 2, 3)]
    assert costs[1] - costs[0] >= 12 * 128**2, "what a tile at half size covers"
    assert costs[2] - costs[1] >= 12 * 256**2
    on_a_gpu = Deblurrer(net, tile=64)
    on_a_gpu.device = torch.device("cuda")  # where the band and pieces of the picture lie in main memory
    assert on_a_gpu._cost(64, 3, 512, 512) == on_a_gpu._packed + resident_bytes(net.config, 3 * 64**2, 4)


def test_a_share_of_the_restoration_is_mixed_with_the_picture_itself():
    picture = torch.rand(1, 3, 40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Deblurrer(Curve(), scales=2, strength=0.0)(picture), picture)  # type: ignore[arg-type]


def test_a_network_of_two_views_has_one_scale():
    with pytest.raises(InputError, match="networks of one view"):
        Deblurrer(Curve(in_channels=6), scales=2)  # type: ignore[arg-type]
    assert Deblurrer(Curve(in_channels=6), scales="auto").scales == 1  # type: ignore[arg-type]
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


def test_installed_models_have_their_scales(weights, monkeypatch):
    monkeypatch.setattr("swintormer.checkpoint.checkpoint.default_weights", lambda name: weights)
    made = {name: make_deblurrer(Settings(model=name)) for name in ("small", "strong", "wide")}
    assert {name: deblurrer.scales for name, deblurrer in made.items()} == {"small": 1, "strong": 1, "wide": "auto"}
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
    assert said["small"] == said["strong"] == run("export", "-o", "a.pt2").stderr == ""
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
