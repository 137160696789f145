"""Two nodes of ComfyUI: load a network, and deblur pictures with it."""

from __future__ import annotations

import copy
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch

from swintormer import Deblurrer, read_checkpoint
from swintormer.cli.models import MODELS
from swintormer.inference.deblurrer import DEVICES
from swintormer.inference.memory import resident_bytes

FOLDER = "upscale_models"  # where ComfyUI keeps networks from picture to picture
SHIPPED = {f"{name} (comes with swintormer)": model for name, model in MODELS.items()}
TILES = 4  # at once, that there must be room for


def path_of(name: str) -> Path:
    """The file of a network by its name in the list."""
    if name in SHIPPED:
        return SHIPPED[name].path()
    return Path(folder_paths.get_full_path_or_raise(FOLDER, name))


def device() -> torch.device:
    """ComfyUI's; the CPU in place of one that the network does not run on, such as Intel's."""
    chosen = torch.device(comfy.model_management.get_torch_device())
    return chosen if chosen.type in DEVICES else torch.device("cpu")


class LoadSwintormer:
    """A network that ships with swintormer, or a file of models/upscale_models."""

    DESCRIPTION = "Load a deblurring network: one that comes with swintormer, or a file of models/upscale_models."
    CATEGORY = "image/deblur"
    RETURN_TYPES = ("SWINTORMER",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        names = [*SHIPPED, *folder_paths.get_filename_list(FOLDER)]
        purposes = "\n".join(f"{name}: {model.purpose}." for name, model in MODELS.items())
        return {"required": {"model_name": (names, {"tooltip": purposes})}}

    @classmethod
    def IS_CHANGED(cls, model_name):
        return path_of(model_name).stat().st_mtime_ns

    def load(self, model_name):
        # ComfyUI runs nodes in inference mode. Weights made there have no versions, so kernels would pack them for
        # every tile.
        with torch.inference_mode(False):
            scales = SHIPPED[model_name].scales if model_name in SHIPPED else 1
            return (Deblurrer(read_checkpoint(path_of(model_name)), device=device(), scales=scales),)


class DeblurSwintormer:
    """Remove blur, tile by tile: memory does not grow with the picture."""

    DESCRIPTION = "Remove defocus and motion blur from photographs, tile by tile."
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
        if model.device.type != "cpu":  # half of what is free there is used: ComfyUI's other networks make room
            room = 2 * resident_bytes(model.net.config, TILES * model.tile**2)
            comfy.model_management.free_memory(room, model.device)
        bar = comfy.utils.ProgressBar(1)

        def progress(done, total):
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(done, total)

        deblur = copy.copy(model)  # shares the network
        deblur.strength = min(max(strength, 0.0), 1.0)  # ComfyUI checks what is typed, not what another node sends
        pictures = image[..., :3].permute(0, 3, 1, 2).to(deblur.dtype)
        restored = deblur(pictures, progress).clamp_(0, 1).permute(0, 2, 3, 1).to(image)
        return (torch.cat([restored, image[..., 3:]], dim=-1),)
