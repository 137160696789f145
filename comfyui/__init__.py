"""ComfyUI finds the nodes here; its own nodes for upscalers learn to load the files through spandrel, too."""

from contextlib import suppress

from swintormer.errors import SwintormerError
from swintormer.integrations import spandrel

from .nodes import DeblurSwintormer, LoadSwintormer

with suppress(SwintormerError):  # without spandrel only the nodes below work
    spandrel.register()

NODE_CLASS_MAPPINGS = {"LoadSwintormer": LoadSwintormer, "DeblurSwintormer": DeblurSwintormer}
NODE_DISPLAY_NAME_MAPPINGS = {"LoadSwintormer": "Load Swintormer", "DeblurSwintormer": "Deblur (Swintormer)"}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
