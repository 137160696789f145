"""The perceptual loss of the paper: distance of VGG19 features (Johnson et al. ECCV 2016), with the user's weights.

Nothing is downloaded. The file is torchvision's public `vgg19-dcbb9e9d.pth` or any of that layout; it goes through the
restricted unpickler.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swintormer.errors import SwintormerError

# Channels of the convolutions of VGG19 (Simonyan and Zisserman 2015, column E); "M" halves the sides.
LAYERS: tuple[int | str, ...] = (64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4)
# Of ImageNet, which the public weights were trained on.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VGG19Features(nn.Module):
    """The convolutions of VGG19; parameter names are torchvision's (`features.0.weight`, ...).

    `forward` takes (B, 3, H, W) in [0, 1], H and W at least 16, and returns the outputs of all sixteen, conv1_1 to
    conv5_4 (the paper's choice), before their ReLU.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in LAYERS:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> list[Tensor]:
        # Not buffers: files do not contain them, so `to_empty` would leave them undefined.
        mean, deviation = (image.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        x, taken = (image - mean) / deviation, []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                taken.append(x)
        return taken


class PerceptualLoss(nn.Module):
    """Mean absolute difference of features, averaged over the sixteen layers. It is not trained.

    Args:
        weights: file of VGG19's weights; entries of its classifier are ignored.

    Raises:
        SwintormerError: it cannot be read, or is of another network.
    """

    def __init__(self, weights: str | Path):
        from swintormer.tensors import read_tensors

        super().__init__()
        self.vgg = VGG19Features()
        state, _ = read_tensors(Path(weights))
        own = {name: tensor for name, tensor in state.items() if name.startswith("features.")}
        try:
            self.vgg.load_state_dict(own)
        except RuntimeError as error:
            raise SwintormerError(
                f"{weights} does not hold the convolutions of VGG19: expected torchvision's vgg19 weights."
            ) from error
        self.requires_grad_(False).eval()

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Of two batches (B, 3, H, W) around [0, 1]; a scalar in float32, differentiable with respect to `output`."""
        with torch.no_grad():
            truth = self.vgg(target.float())
        features = self.vgg(output.float())
        distances = [F.l1_loss(a, b) for a, b in zip(features, truth, strict=True)]
        return torch.stack(distances).mean()
