"""Devices, dtypes and memory layouts that the CUDA kernels accept."""

from __future__ import annotations

import torch
from torch import Tensor

from swintormer_kernels.backends.cuda import device
from swintormer_kernels.transforms import constant_in_compiled_code

DTYPES = (torch.bfloat16, torch.float16)
MOST_ELEMENTS = 2**31 - 1  # kernels count elements and pixels in 32 bits


def half_on_gpu(images: str, *tensors: Tensor | None, converted: bool = False) -> str | None:
    """Predicate: None if the kernels of `images` can read these tensors, x first, otherwise the reason.

    All must be strided, on one CUDA device (emulated: the CPU) with kernels, and of one dtype: bfloat16 or float16.

    Args:
        images: names of the fatbins that the op takes, with spaces between.
        tensors: those of the call; None for an absent one.
        converted: whether autocast converts the op's tensors; under autocast their dtypes may differ then.
    """
    x = next(tensor for tensor in tensors if tensor is not None)
    where = "cuda" if device.EMULATOR is None else "cpu"
    if x.device.type != where:
        return f"the cuda backend takes {'CUDA' if where == 'cuda' else 'CPU'} tensors, found one on {x.device}"
    reason = _device_lacks(images, x.device)
    if reason is not None:
        return reason
    mixed = converted and where == "cuda" and torch.is_autocast_enabled(where)
    dtype = torch.get_autocast_dtype(where) if mixed else x.dtype
    if dtype not in DTYPES:
        return f"the cuda backend takes bfloat16 and float16, found {str(dtype).removeprefix('torch.')}"
    for tensor in tensors:
        reason = None if tensor is None else _in_the_way(tensor, x, mixed)
        if reason is not None:
            return f"the cuda backend takes {reason}"
    if x.numel() > MOST_ELEMENTS:
        return f"the cuda backend takes at most {MOST_ELEMENTS} elements, found {x.numel()}"
    return None


@constant_in_compiled_code
def _device_lacks(images: str, where: torch.device) -> str | None:
    for image in images.split():
        reason = device.image_lacks(image)
        if reason is not None:
            return reason
    return device.device_lacks(where)


def _in_the_way(tensor: Tensor, x: Tensor, mixed: bool) -> str | None:
    if tensor.device != x.device:
        return f"tensors on one device, found {x.device} and {tensor.device}"
    if tensor.dtype != x.dtype and not (mixed and tensor.is_floating_point() and tensor.dtype != torch.float64):
        return f"tensors of one dtype, found {x.dtype} and {tensor.dtype}"
    return None if tensor.layout == torch.strided else f"dense (strided) tensors, found layout {tensor.layout}"


def half_rows_on_gpu(images: str, x: Tensor, *weights: Tensor | None) -> str | None:
    """As `half_on_gpu` for an op of torch_op.py, and x must be channels_last without gaps."""
    if not is_rows(x):
        return "the cuda backend takes images in channels_last; call `.contiguous(memory_format=torch.channels_last)`"
    return half_on_gpu(images, x, *weights, converted=True)


def is_rows(x: Tensor) -> bool:
    """Whether the batch is one contiguous matrix (pixels, C), that is channels_last."""
    return x.is_contiguous(memory_format=torch.channels_last)


def aligned(x: Tensor) -> Tensor:
    """x, or a copy where it does not start at a multiple of 16 bytes, which kernels load at once."""
    return x if x.data_ptr() % 16 == 0 else x.clone()
