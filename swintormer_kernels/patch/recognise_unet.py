"""Parts of diffusion U-Nets and their autoencoders, read off their structure: names of parts, shapes, attributes.

The names are those of diffusers' ResnetBlock2D, Attention, and of what ends its networks; never their classes, and
diffusers itself is not needed. Every check answers with None or in words, for the report.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from swintormer_kernels.patch.recognise import has_hooks, unwrapped

_RES_BLOCK = {"norm1", "conv1", "norm2", "conv2"}
_RES_BLOCK_MORE = {"nonlinearity", "time_emb_proj", "dropout", "conv_shortcut"}
_ATTENTION = {"to_q", "to_k", "to_v", "to_out"}
_ATTENTION_MORE = {"group_norm"}
_PROCESSORS = {"AttnProcessor", "AttnProcessor2_0"}  # of diffusers: plain attention, by hand and by torch's function


def candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(name, module, kind) of what resembles a part, one of those below.

    "res block", "attention", "upsampling". "norm and SiLU": the module that holds the two as `conv_norm_out` and
    `conv_act`; a `conv_out` after them goes with them if it can. "network": one that asks for its own dtype each step.
    """
    for name, module in model.named_modules():
        parts = module._modules.keys()
        if parts >= _RES_BLOCK:
            yield name, module, "res block"
        elif parts >= _ATTENTION:
            yield name, module, "attention"
        elif "conv" in parts and hasattr(module, "use_conv_transpose"):
            yield name, module, "upsampling"
        elif parts >= {"conv_norm_out", "conv_act"}:
            yield name, module, "norm and SiLU"
        if parts >= {"time_proj", "time_embedding"} and why_not_network(module) is None:
            yield name, module, "network"


def why_not_res_block(block: Any) -> str | None:
    """None if `block` can compute through two `norm_silu_conv3x3`, else the first difference."""
    resampling = [name for name in ("upsample", "downsample") if getattr(block, name, None) is not None]
    if resampling:
        return f"it changes the resolution between norm and convolution ({resampling[0]})"
    return (
        _why_not_replaceable(block, _RES_BLOCK | _RES_BLOCK_MORE)
        or _why_norm_or_conv_differs(block)
        or _why_time_differs(block)
        or _why_dropout(block, getattr(block, "dropout", None))
    )


def why_not_attention(attention: Any) -> str | None:
    """None if `attention` is self-attention over the pixels or tokens of one input, else the first difference."""
    extra = [name for name, part in attention._modules.items() if part is not None and name.startswith("norm_")]
    if getattr(attention, "spatial_norm", None) is not None:
        return "it has a spatial norm, which depends on a second image"
    if extra:
        return f"it has a {extra[0]}, which no fused path has"
    if getattr(attention, "is_cross_attention", False):
        return "it is cross-attention: queries and keys come from different inputs, so there is no common product"
    if getattr(attention, "add_k_proj", None) is not None:
        return "it attends to a second sequence as well (add_k_proj)"
    return (
        _why_processor_differs(attention)
        or _why_not_replaceable(attention, _ATTENTION | _ATTENTION_MORE)
        or _why_projections_differ(attention)
        or _why_dropout(attention, attention.to_out[-1])
    )


def why_not_upsampling(module: Any) -> str | None:
    """None if `module` doubles the resolution by nearest neighbours and convolves the result, else why not."""
    if module.use_conv_transpose:
        return "it is a transposed convolution"
    if getattr(module, "norm", None) is not None:
        return "it has a norm before it changes the resolution"
    if not getattr(module, "interpolate", True):
        return "it does not change the resolution"
    return _why_not_replaceable(module, {"conv"}) or _why_not_conv3x3("conv", unwrapped(module.conv))


def why_not_network(network: Any) -> str | None:
    """None if the dtype of `network` is the property that diffusers' models inherit, which walks over all modules."""
    found = [vars(cls)["dtype"] for cls in type(network).__mro__ if "dtype" in vars(cls)]
    getters = [entry.fget for entry in found if isinstance(entry, property)]
    theirs = [getter for getter in getters if getter.__module__ == "diffusers.models.modeling_utils"]
    return None if theirs else "its dtype is no property of diffusers' models"


def why_not_norm_and_silu(owner: Any) -> str | None:
    """None if `owner.conv_norm_out` and `owner.conv_act` can compute through one `group_norm_silu`."""
    norm, act = owner.conv_norm_out, owner.conv_act
    if norm is None or act is None:
        return "one of the two is missing"
    return (
        _why_not_silu("conv_act", act)
        or _why_not_group_norm("conv_norm_out", norm)
        or _why_hooks({"conv_norm_out": norm, "conv_act": act})
    )


def why_not_last_conv(conv: Any, channels: int) -> str | None:
    """None if `conv`, which follows the norm and SiLU, can be computed with them."""
    reason = _why_not_conv3x3("conv_out", conv) or _why_hooks({"conv_out": conv})
    if reason is None and conv.in_channels != channels:
        return f"conv_out takes {conv.in_channels} channels, and the norm before it has {channels}"
    return reason


# ---- pieces ----------------------------------------------------------------------------------------------------------


def _why_not_replaceable(module: nn.Module, known: set[str]) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled to TorchScript, which cannot be changed"
    if "forward" in vars(module):
        return "its forward was replaced on the object itself, so a swap would not be called"
    extra = sorted(name for name, part in module._modules.items() if part is not None and name not in known)
    if extra:
        return f"its part {extra[0]} ({type(module._modules[extra[0]]).__name__}) has no place in it"
    parameters = list(module.parameters())
    places = {(p.device, p.dtype) for p in parameters}
    if len(places) > 1 or not parameters[0].is_floating_point():
        found = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in places))
        return f"its parameters must share one device and one floating point dtype, found {found}"
    strange = [p for p in parameters if type(p.data) is not Tensor or p.layout != torch.strided]
    if strange:
        return f"its parameters are no plain tensors but {type(strange[0].data).__name__} ({strange[0].layout})"
    return _why_hooks({name: part for name, part in module.named_modules() if name})


def _why_hooks(parts: dict[str, nn.Module]) -> str | None:
    hooked = [name for name, part in parts.items() if has_hooks(part)]
    return f"a hook hangs on {hooked[0]}, which would not run any more; remove it first" if hooked else None


def _why_norm_or_conv_differs(block: Any) -> str | None:
    convs = {name: unwrapped(getattr(block, name)) for name in ("conv1", "conv2")}
    for name, conv in convs.items():
        reason = _why_not_conv3x3(name, conv)
        if reason is not None:
            return reason
    first, second = convs.values()
    for name, conv in (("norm1", first), ("norm2", second)):
        norm = getattr(block, name)
        reason = _why_not_group_norm(name, norm)
        if reason is not None:
            return reason
        if norm.num_channels != conv.in_channels:  # type: ignore[union-attr]
            return f"{name} has {norm.num_channels} channels, and the convolution after it takes {conv.in_channels}"  # type: ignore[union-attr]
    if getattr(block, "conv_shortcut", None) is None and first.in_channels != second.out_channels:  # type: ignore[union-attr]
        return "its input and its output differ in channels, and there is no conv_shortcut"
    return _why_not_silu("nonlinearity", getattr(block, "nonlinearity", None))


def _why_not_conv3x3(name: str, conv: Any) -> str | None:
    if type(conv) is not nn.Conv2d:
        return f"{name} is a {type(conv).__name__}, not a plain Conv2d"
    expected = {
        "kernel size": ((3, 3), conv.kernel_size),
        "stride": ((1, 1), conv.stride),
        "padding": ((1, 1), {"same": (1, 1)}.get(str(conv.padding), conv.padding)),
        "dilation": ((1, 1), conv.dilation),
        "groups": (1, conv.groups),
        "padding_mode": ("zeros", conv.padding_mode),
    }
    for what, (wanted, found) in expected.items():
        if wanted != found:
            return f"{name} has {what} {found}, and the op has {wanted}"
    return None


def _why_not_group_norm(name: str, norm: Any) -> str | None:
    return None if type(norm) is nn.GroupNorm else f"{name} is a {type(norm).__name__}, not a plain GroupNorm"


def _why_not_silu(name: str, act: Any) -> str | None:
    return None if type(act) is nn.SiLU else f"{name} is a {type(act).__name__}, and the op has SiLU"


def _why_time_differs(block: Any) -> str | None:
    how = getattr(block, "time_embedding_norm", "default")
    projection = getattr(block, "time_emb_proj", None)
    if projection is None:  # an autoencoder's block, which has no time
        return "its time_embedding_norm is 'scale_shift' without a time_emb_proj" if how == "scale_shift" else None
    if how not in ("default", "scale_shift"):
        return f"its time_embedding_norm is {how!r}, and the op has 'default' and 'scale_shift'"
    if type(projection) is not nn.Linear:
        return f"time_emb_proj is a {type(projection).__name__}, not a plain Linear"
    wanted = block.norm2.num_channels * (1 if how == "default" else 2)
    if projection.out_features != wanted:
        return f"time_emb_proj gives {projection.out_features} numbers, and {how!r} takes {wanted}"
    return None


def _why_processor_differs(attention: Any) -> str | None:
    """diffusers' Attention computes nothing itself; a module without a processor does."""
    processor = getattr(attention, "processor", None)
    cls = type(processor)
    if processor is None or (cls.__name__ in _PROCESSORS and cls.__module__.partition(".")[0] == "diffusers"):
        return None
    known = " and ".join(sorted(_PROCESSORS))
    return f"its processor is {cls.__module__}.{cls.__name__}, which may compute anything; known are diffusers' {known}"


def _why_projections_differ(attention: Any) -> str | None:
    for name in ("to_q", "to_k", "to_v"):
        if type(getattr(attention, name)) is not nn.Linear:
            return f"{name} is a {type(getattr(attention, name)).__name__}, not a plain Linear"
    shapes = {getattr(attention, name).weight.shape for name in ("to_q", "to_k", "to_v")}
    biases = {getattr(attention, name).bias is None for name in ("to_q", "to_k", "to_v")}
    if len(shapes) > 1 or len(biases) > 1:
        return f"to_q, to_k and to_v must be alike, found weights of {', '.join(str(tuple(s)) for s in sorted(shapes))}"
    inner = attention.to_q.out_features
    if not isinstance(attention.to_out, nn.ModuleList) or type(attention.to_out[0]) is not nn.Linear:
        return "to_out must be a list that begins with a plain Linear"
    if inner % attention.heads:
        return f"its {attention.heads} heads do not divide its {inner} channels"
    norm = getattr(attention, "group_norm", None)
    return None if norm is None else _why_not_group_norm("group_norm", norm)


def _why_dropout(module: nn.Module, dropout: Any) -> str | None:
    if module.training and getattr(dropout, "p", 0.0) > 0.0:
        return f"it drops values while training (p = {dropout.p}), and the op has no dropout; call model.eval() first"
    return None
