"""Two nodes of ComfyUI: load a network, and deblur pictures with it."""

from __future__ import annotations

import copy
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch

from swintormer import Deblurrer, read_checkpoint
from swintormer.checkpoint.checkpoint import default_weights

FOLDER = "upscale_models"  # where ComfyUI keeps networks from picture to picture
SHIPPED = {"small (comes with swintormer)": "small", "small-prior (comes with swintormer)": "small-prior"}


def path_of(name: str) -> Path:
    """The file of a network by its name in the list."""
    if name in SHIPPED:
        return default_weights(SHIPPED[name])
    return Path(folder_paths.get_full_path_or_raise(FOLDER, name))


class LoadSwintormer:
    """A network that ships with swintormer, or a file of models/upscale_models."""

    CATEGORY = "image/deblur"
    RETURN_TYPES = ("SWINTORMER",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        names = [*SHIPPED, *folder_paths.get_filename_list(FOLDER)]
        return {"required": {"model_name": (names, {"tooltip": "Files lie in models/upscale_models."})}}

    @classmethod
    def IS_CHANGED(cls, model_name):
        return path_of(model_name).stat().st_mtime_ns

    def load(self, model_name):
        checkpoint = read_checkpoint(path_of(model_name))
        return (Deblurrer(checkpoint, device=comfy.model_management.get_torch_device()),)


class DeblurSwintormer:
    """Remove blur, tile by tile: memory does not grow with the picture."""

    CATEGORY = "image/deblur"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "deblur"

    @classmethod
    def INPUT_TYPES(cls):
        strength = {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05, "tooltip": "0 leaves the picture as it is."}
        return {
            "required": {"model": ("SWINTORMER",), "image": ("IMAGE",), "strength": ("FLOAT", strength)},
        }

    def deblur(self, model, image, strength):
        """(B, H, W, 3 or 4) in [0, 1] -> the same; a fourth channel, transparency, stays as it is."""
        bar = comfy.utils.ProgressBar(1)

        def progress(done, total):
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(done, total)

        deblur = copy.copy(model)  # shares the network
        deblur.strength = strength
        pictures = image[..., :3].permute(0, 3, 1, 2).to(deblur.dtype)
        restored = deblur(pictures, progress).clamp_(0, 1).permute(0, 2, 3, 1).to(image)
        return (torch.cat([restored, image[..., 3:]], dim=-1),)
