"""Learned perceptual distance (LPIPS; Zhang et al., CVPR 2018), with weights from the package `stlpips-pytorch`.

The weights are those of its shift-tolerant form (ST-LPIPS; Ghildyal and Liu, ECCV 2022): the same stacks of
convolutions and heads, but every reduction blurs before it drops samples. Values are therefore not comparable with
those of the first LPIPS weights, which many papers print. Only the package's two weights files are read, as plain
tensors; its code is neither imported nor run. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swintormer.errors import SwintormerError

PACKAGE = "stlpips_pytorch"
INSTALL = "pip install stlpips-pytorch"
Stack = Literal["vgg", "alex"]
# Normalisation of a picture in [-1, 1] (Zhang et al. 2018).
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
SMALLEST = {"vgg": 18, "alex": 21}  # side in pixels: the last blur reflects two pixels at each edge


class Blur(nn.Module):
    """Every second sample after a binomial blur of 3x3, with two reflected samples at each edge."""

    def forward(self, x: Tensor) -> Tensor:
        row = x.new_tensor((0.25, 0.5, 0.25))
        kernel = torch.outer(row, row).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def _alex() -> list[nn.Module]:
    """The convolutions of AlexNet; the first one's stride of 4 is two blurs."""
    return [
        *(nn.Conv2d(3, 64, 11, padding=2), Blur(), nn.ReLU()),
        *(nn.MaxPool2d(3, 1), Blur(), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()),
        *(nn.MaxPool2d(3, 1), Blur(), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    ]


def _vgg() -> list[nn.Module]:
    """The convolutions of VGG16 (Simonyan and Zisserman 2015, column D)."""
    layers: list[nn.Module] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        if layers:
            layers += [nn.MaxPool2d(2, 1), Blur()]
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return layers


# The layers after which features are compared: the last ReLU of each level, with its channels.
_STACKS = {
    "alex": (_alex, {2: 64, 6: 192, 10: 384, 12: 256, 14: 256}),
    "vgg": (_vgg, {3: 64, 9: 128, 17: 256, 25: 512, 33: 512}),
}


class PerceptualDistance(nn.Module):
    """LPIPS: squared distances of unit feature vectors, weighted by channel, averaged over places, summed over levels.

    Zhang et al. recommend the VGG stack as a loss and AlexNet as a measure. The weights are random at first; `trained`
    loads those of the package. They are not trained here.

    Args:
        stack: "vgg" or "alex".
    """

    def __init__(self, stack: Stack):
        super().__init__()
        make, self.taken = _STACKS[stack]
        self.layers = nn.Sequential(*make())
        self.heads = nn.ParameterList(torch.rand(channels, 1, 1) / channels for channels in self.taken.values())
        self.requires_grad_(False).eval()

    def features(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) around [0, 1] -> the features of five levels, unit vectors along the channels."""
        shift, scale = (image.new_tensor(values)[:, None, None] for values in (SHIFT, SCALE))
        x, taken = (2 * image - 1 - shift) / scale, []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self.taken:
                # vector_norm has a gradient of 0 where all channels are 0; the root of a sum has none.
                taken.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10))
        return taken

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Of two batches (B, 3, H, W) around [0, 1], sides at least `SMALLEST`; float32 (B,), differentiable."""
        with torch.no_grad():
            truth = self.features(target.float())
        levels = zip(self.features(output.float()), truth, self.heads, strict=True)
        return torch.stack([(head * (a - b).square()).sum(1).mean((1, 2)) for a, b, head in levels]).sum(0)

    @classmethod
    def trained(cls, stack: Stack) -> PerceptualDistance:
        """With the weights of the installed package.

        Raises:
            SwintormerError: the package is not installed, or its file is not as expected.
        """
        path = weights_file(stack)
        if path is None:
            raise SwintormerError(
                f"The perceptual distance needs the weights in the package stlpips-pytorch: {INSTALL} (64 MB)."
            )
        distance = cls(stack)
        distance.load(path)
        return distance

    def load(self, path: Path) -> None:
        """Take the weights of a file of the package. Raises SwintormerError if it holds others."""
        from swintormer.tensors import read_tensors

        found, _ = read_tensors(path)
        own = {}
        for name, tensor in found.items():
            if name.startswith("net.") and not name.endswith(".filt"):  # net.slice2.5.weight: the fifth layer's
                own["layers." + name.split(".", 2)[2]] = tensor
            elif name.startswith("lin"):  # lin0.model.1.weight: the first level's head
                own[f"heads.{name[3]}"] = tensor.squeeze(0)
        try:
            self.load_state_dict(own)
        except RuntimeError as error:
            raise SwintormerError(f"{path} does not hold the expected perceptual weights: {INSTALL}.") from error


def weights_file(stack: Stack) -> Path | None:
    """The weights file of the installed package, found without importing it; None where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "weights" / "vST0.0" / f"{stack}_shift_tolerant.pth"
