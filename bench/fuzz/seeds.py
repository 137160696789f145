"""Whole files to damage: every kind of picture that the program reads, and every kind of checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from swintormer import Swintormer, save_checkpoint
from swintormer.images.picture import wrap
from swintormer.model.config import NetworkConfig

SIDE = 64
BLOCK = 16  # no block of so many pixels a side has one colour: one that has is a hole
TILES: dict[str, Any] = {"tile": True, "tile_width": 16, "tile_height": 16}
UNCHECKED = ("none", "packbits", "webp", "jpeg")  # compressions of TIFF without a checksum
TINY = NetworkConfig(
    in_channels=3, dim=4, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1, heads=(1, 1, 1, 1), window_size=2
)


def write_pictures(folder: Path) -> list[Path]:
    """Small pictures of all kinds, with metadata; those that the installed libvips cannot write are left out."""
    import pyvips

    rng = np.random.default_rng(0)
    colour, gray, alpha = (_texture(rng, channels) for channels in (3, 1, 4))
    deep = (colour.astype(np.uint16) * 257) ^ rng.integers(0, 256, colour.shape, dtype=np.uint16)
    profile = pyvips.Image.profile_load("srgb")
    kinds: list[tuple[str, np.ndarray[Any, Any], dict[str, Any]]] = [
        ("plain.png", colour, {}),
        ("gray.png", gray, {}),
        ("alpha.png", alpha, {}),
        ("deep.png", deep, {}),
        ("interlaced.png", colour, {"interlace": True}),
        ("palette.png", colour, {"palette": True}),
        ("plain.jpg", colour, {"Q": 90}),
        ("gray.jpg", gray, {"Q": 90}),
        ("progressive.jpg", colour, {"Q": 90, "interlace": True}),
        ("restarts.jpg", colour, {"Q": 60, "restart_interval": 2}),
        ("lossy.webp", colour, {"Q": 80}),
        ("lossless.webp", colour, {"lossless": True}),
        ("alpha.webp", alpha, {"Q": 80}),
    ]
    for compression in ("none", "deflate", "lzw", "packbits", "jpeg", "webp", "zstd"):
        kinds.append((f"strips_{compression}.tif", colour, {"compression": compression}))
        kinds.append((f"tiles_{compression}.tif", colour, {"compression": compression, **TILES}))
    kinds += [
        ("deep.tif", deep, {"compression": "deflate", "predictor": "horizontal"}),
        ("alpha.tif", alpha, {"compression": "lzw", **TILES}),
        ("big.tif", colour, {"compression": "deflate", "bigtiff": True, **TILES}),
    ]
    written = []
    for name, pixels, options in kinds:
        image = wrap(pixels)
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
        image.set_type(pyvips.GValue.blob_type, "xmp-data", b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>")
        image.set_type(pyvips.GValue.gstr_type, "exif-ifd0-Artist", "Somebody (Somebody, ASCII, 9 components, 9 bytes)")
        path = folder / name
        try:
            image.write_to_file(str(path), **options)
        except pyvips.Error:
            path.unlink(missing_ok=True)
            continue
        written.append(path)
    return written


def _texture(rng: np.random.Generator, channels: int) -> np.ndarray[Any, Any]:
    """Noise over slopes, which no decoder gives in place of what it could not read."""
    y, x = np.mgrid[:SIDE, :SIDE]
    slope = 128 + 60 * np.sin(x / 9)[..., None] * np.cos(y / 7)[..., None]
    noise = rng.uniform(-40, 40, (SIDE, SIDE, channels))
    return np.ascontiguousarray(np.clip(slope + noise, 0, 255).astype(np.uint8))


def write_checkpoints(folder: Path) -> list[Path]:
    """The network's own files and those of the released layout."""
    torch.manual_seed(0)
    net = Swintormer(TINY)
    own, dual = folder / "own.safetensors", folder / "dual.safetensors"
    save_checkpoint(net, own, training_tile=32, card={"summary": "random numbers"})
    save_checkpoint(Swintormer(TINY, in_channels=6), dual)
    state = net.state_dict()
    zipped, old = folder / "zipped.pth", folder / "old.pth"
    torch.save({"params_ema": state}, zipped)
    torch.save({"params": state}, old, _use_new_zipfile_serialization=False)
    return [own, dual, zipped, old]
