"""Parts of diffusion U-Nets as the ops compute them; `optimize` swaps them in: see `recognise_unet` for which.

What a swapped part cannot take (other arguments, hooks or other modules put on its inner parts later, dropout while
training) goes to its own forward, as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swintormer_kernels.ops.group_norm_silu import group_norm_silu
from swintormer_kernels.ops.norm_projection import OP as NORM_PROJECTION_OP
from swintormer_kernels.ops.norm_projection import norm_projection
from swintormer_kernels.ops.norm_silu_conv3x3 import OP as CONV_OP
from swintormer_kernels.ops.norm_silu_conv3x3 import norm_silu_conv3x3
from swintormer_kernels.ops.res_block import fused_res_block
from swintormer_kernels.ops.upsample_conv3x3 import upsample_conv3x3
from swintormer_kernels.packed import derived
from swintormer_kernels.patch import probe_unet, recognise_unet
from swintormer_kernels.patch.recognise import has_hooks, runs_the_same_code
from swintormer_kernels.patch.swap import SwappedModule, swapped_class
from swintormer_kernels.records import (
    ConvWeights,
    GroupNormWeights,
    LinearWeights,
    Norms,
    ResBlockWeights,
    UpsampleWeights,
)
from swintormer_kernels.registry import Explanation, asked_backend, explain

_SIDE = 32  # of the latent that the report speaks of


@dataclass(frozen=True)
class SwappedPart:
    """A swapped part of a U-Net: what it is, and `explanation` of the backend that its op takes.

    The backend is the one for a 32 x 32 latent, batch 1, channels_last, in the part's dtype, in the grad mode of now.
    It is None where nothing is selected: `through` then says what computes the part on every backend.
    """

    what: str
    explanation: Explanation | None
    through: str = "scaled_dot_product_attention"

    def __str__(self) -> str:
        return f"{self.what} -> {self.through if self.explanation is None else self.explanation.backend}"


class _SwappedUnetPart(SwappedModule):
    _unet_parts: tuple[type, ...]  # classes of the inner modules whose forward is replaced

    def unet_parts(self) -> tuple[Any, ...]:
        """What computes in the part's own forward and no longer does; None for what is not there."""
        raise NotImplementedError

    def describe(self) -> SwappedPart:
        """What the report says."""
        raise NotImplementedError

    def forget_swap(self) -> None:
        del self._unet_parts

    def unchanged(self) -> bool:
        """Whether the inner modules are those of the swap, and nobody wants to see them run."""
        parts = self.unet_parts()
        if tuple(map(type, parts)) != self._unet_parts:
            return False
        return not any(has_hooks(part) for part in parts if isinstance(part, nn.Module))


class SwappedResBlock(_SwappedUnetPart):
    """A res block as one `res_block` where a backend has that, else as two `norm_silu_conv3x3`."""

    norm1: Any  # parts are of the block's own classes
    conv1: Any
    norm2: Any
    conv2: Any

    def forward(self, input_tensor: Any, temb: Any = None, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or not self._takes(input_tensor, temb):
            return super().forward(input_tensor, temb, *args, **kwargs)
        norm2, embedding = self._time(temb, input_tensor.shape[0])
        factor = getattr(self, "output_scale_factor", 1.0)
        out = self._in_one(input_tensor, norm2, embedding)
        if out is None:
            out = self._in_two(input_tensor, norm2, embedding)
        return out if factor == 1.0 else out / factor

    def _in_one(self, x: Tensor, norm2: GroupNormWeights, embedding: Tensor | None) -> Tensor | None:
        """The whole block through `res_block`, or None where it would go to the reference."""
        parts: Any = self._modules
        conv1, conv2, shortcut = parts["conv1"], parts["conv2"], parts.get("conv_shortcut")
        if not x.is_cpu or asked_backend() not in (None, "cpu") or (shortcut and not _is_pointwise(shortcut)):
            return None
        norm1 = parts["norm1"]
        block = ResBlockWeights(
            *(conv1.weight, conv2.weight, conv1.bias, conv2.bias),
            *(norm1.weight, norm1.bias, norm2.weight, norm2.bias),
            *(embedding, norm2.scale, norm2.shift),
            *((shortcut.weight, shortcut.bias) if shortcut else (None, None)),
        )
        norms = Norms(norm1.num_groups, parts["norm2"].num_groups, norm1.eps, parts["norm2"].eps)
        return fused_res_block(x, block, norms)

    def _in_two(self, input_tensor: Tensor, norm2: GroupNormWeights, embedding: Tensor | None) -> Tensor:
        conv1 = ConvWeights(self.conv1.weight, self.conv1.bias, embedding)
        hidden = norm_silu_conv3x3(input_tensor, _weights(self.norm1), conv1, self.norm1.num_groups, self.norm1.eps)
        conv2 = ConvWeights(self.conv2.weight, self.conv2.bias, skip=self._skip(input_tensor))
        return norm_silu_conv3x3(hidden, norm2, conv2, self.norm2.num_groups, self.norm2.eps)

    def _skip(self, x: Tensor) -> Tensor:
        """What the block adds: its input, by way of the shortcut if it has one."""
        shortcut: Any = self._modules.get("conv_shortcut")
        if shortcut is None:
            return x
        if not (_is_pointwise(shortcut) and x.is_contiguous(memory_format=torch.channels_last)):
            return shortcut(x)
        # A matrix product: of 96 to 32 channels at 32 x 32 pixels it takes a third of the convolution's time.
        rows = F.linear(x.permute(0, 2, 3, 1), shortcut.weight.flatten(1), shortcut.bias)
        return rows.permute(0, 3, 1, 2)

    def _takes(self, x: Any, temb: Any) -> bool:
        parts: Any = self._modules
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != parts["norm1"].num_channels:
            return False
        if parts.get("time_emb_proj") is None:
            if temb is not None:  # diffusers adds it as it comes
                return False
        elif not isinstance(temb, Tensor) or temb.ndim != 2 or temb.shape[0] not in (1, x.shape[0]):
            return False
        if self.training and _drops(parts.get("dropout")):
            return False
        return self.unchanged()

    def _time(self, temb: Tensor | None, batch: int) -> tuple[GroupNormWeights, Tensor | None]:
        """norm2 with the embedding's modulation, and the embedding that is added to conv1's result."""
        parts: Any = self._modules
        projection, norm = parts.get("time_emb_proj"), _weights(parts["norm2"])
        if projection is None or temb is None:
            return norm, None
        active = temb if getattr(self, "skip_time_act", False) else F.silu(temb)
        embedding = F.linear(active, projection.weight, projection.bias).expand(batch, -1)
        if getattr(self, "time_embedding_norm", "default") == "default":
            return norm, embedding
        scale, shift = embedding.chunk(2, dim=1)
        return norm._replace(scale=scale, shift=shift), None

    def unet_parts(self) -> tuple[Any, ...]:
        parts = self._modules
        return (
            *(parts.get(name) for name in ("norm1", "conv1", "norm2", "conv2", "nonlinearity", "dropout")),
            parts.get("time_emb_proj"),
        )

    def describe(self) -> SwappedPart:
        conv = self.conv1
        x = conv.weight.new_empty(()).expand(1, conv.in_channels, _SIDE, _SIDE)
        weights = ConvWeights(conv.weight, conv.bias)
        explanation = explain(
            norm_silu_conv3x3, x, _weights(self.norm1), weights, self.norm1.num_groups, self.norm1.eps
        )
        return SwappedPart(f"res block, {conv.in_channels} to {self.conv2.out_channels} channels", explanation)


class SwappedAttention(_SwappedUnetPart):
    """Self-attention with queries, keys and values from one product, through scaled_dot_product_attention."""

    to_q: Any  # parts are of the attention's own classes
    to_k: Any
    to_v: Any
    to_out: Any
    heads: int

    def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        if args or not self._takes(hidden_states, kwargs):
            return super().forward(hidden_states, *args, **kwargs)
        out = self._attend(hidden_states)
        if getattr(self, "residual_connection", False):
            out = out + hidden_states
        factor = getattr(self, "rescale_output_factor", 1.0)
        return out if factor == 1.0 else out / factor

    def _takes(self, x: Any, options: dict[str, Any]) -> bool:
        if not isinstance(x, Tensor) or x.ndim not in (3, 4):
            return False
        if any(value is not None for name, value in options.items() if name != "temb"):
            return False
        if self.training and _drops(self.to_out[-1]):
            return False
        return self.unchanged()

    def _attend(self, x: Tensor) -> Tensor:
        product = self._queries_keys_values(x)
        q, k, v = product.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out = F.linear(attended, self.to_out[0].weight, self.to_out[0].bias)
        return out if x.ndim == 3 else out.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)

    def _queries_keys_values(self, x: Tensor) -> Tensor:
        """(B, tokens, 3 C) of x as it comes or normed: norm and product as one op where a backend wins with that."""
        norm, (weight, bias) = getattr(self, "group_norm", None), self._product()
        if norm is None:
            return F.linear(x if x.ndim == 3 else x.permute(0, 2, 3, 1).flatten(1, 2), weight, bias)
        image = x if x.ndim == 4 else x.mT.unsqueeze(-1)
        arguments = image, _weights(norm), LinearWeights(weight, bias), norm.num_groups, norm.eps
        on_cpu = x.is_cpu and asked_backend() in (None, "cpu")
        if on_cpu and NORM_PROJECTION_OP.select(*arguments) != "reference":
            return norm_projection(*arguments)
        normed = torch.group_norm(x if x.ndim == 4 else x.mT, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return F.linear(normed.permute(0, 2, 3, 1).flatten(1, 2) if x.ndim == 4 else normed.mT, weight, bias)

    def _product(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of queries, keys and values, one below the other."""
        parts = (self.to_q, self.to_k, self.to_v)
        weight = _together([part.weight for part in parts])
        return weight, None if self.to_q.bias is None else _together([part.bias for part in parts])

    def unet_parts(self) -> tuple[Any, ...]:
        parts = (self._modules.get(name) for name in ("to_q", "to_k", "to_v", "group_norm"))
        return (*parts, *self.to_out, getattr(self, "processor", None))  # diffusers' Attention lets the last compute

    def describe(self) -> SwappedPart:
        return SwappedPart(f"attention, {self.to_q.in_features} channels, {self.heads} heads", None)


class SwappedUpsampling(_SwappedUnetPart):
    """Nearest neighbours and a 3x3 convolution as one `upsample_conv3x3`."""

    conv: Any

    def forward(self, hidden_states: Any, output_size: Any = None, *args: Any, **kwargs: Any) -> Any:
        takes = isinstance(hidden_states, Tensor) and hidden_states.ndim == 4 and output_size is None
        if args or kwargs or not takes or not self.unchanged():
            return super().forward(hidden_states, output_size, *args, **kwargs)
        return upsample_conv3x3(hidden_states, UpsampleWeights(self.conv.weight, self.conv.bias))

    def unet_parts(self) -> tuple[Any, ...]:
        return (self.conv,)

    def describe(self) -> SwappedPart:
        x = self.conv.weight.new_empty(()).expand(1, self.conv.in_channels, _SIDE, _SIDE)
        explanation = explain(upsample_conv3x3, x, UpsampleWeights(self.conv.weight, self.conv.bias))
        return SwappedPart(f"upsampling, {self.conv.in_channels} channels", explanation)


class SwappedNetwork(_SwappedUnetPart):
    """A network of diffusers that knows its dtype.

    It asks for it once a step, to cast the time's embedding. diffusers looks at every module first, by hasattr, which
    fails slowly: 0.4 ms of 5 of a step of a small U-Net.
    """

    @classmethod
    def name_of(cls, base: type[nn.Module]) -> str:
        return base.__name__  # diffusers writes it into the configuration of a saved model

    @property
    def dtype(self) -> torch.dtype:
        """Of the first floating point parameter, which is what diffusers' own property answers unless a hook casts."""
        first = next(self.parameters(), None)
        if first is None:  # a replica of DataParallel
            return super().dtype  # type: ignore[misc]
        plain = not getattr(self, "_keep_in_fp32_modules", None) and first.is_floating_point()
        if torch.compiler.is_compiling() or not plain or _has_diffusers_hook(self):
            return super().dtype  # type: ignore[misc]  # of diffusers' class, which comes next
        return first.dtype

    def unet_parts(self) -> tuple[Any, ...]:
        return ()

    def describe(self) -> SwappedPart:
        return SwappedPart("the network's dtype, asked for in every step", None, "its first parameter's")


def _has_diffusers_hook(module: nn.Module) -> bool:
    left = [module]
    while left:
        state = left.pop().__dict__
        if "_diffusers_hook" in state:
            return True
        left += [part for part in state["_modules"].values() if part is not None]
    return False


class _SwappedInEnd(_SwappedUnetPart):
    """Part of the end of a network: norm, SiLU, and mostly a convolution. The last of them computes them all."""

    _end: _End

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or not self._end.intact():
            return super().forward(x)
        return self._end.compute(x) if self._end.parts[-1] is self else x

    def unet_parts(self) -> tuple[Any, ...]:
        return ()

    def forget_swap(self) -> None:
        super().forget_swap()
        del self._end

    def describe(self) -> SwappedPart:
        return self._end.describe()


class _End:
    """What ends a network. No module, or the parts of the network would become parts of one another."""

    def __init__(self, norm: Any, act: Any, conv: Any = None):
        self.parts = (norm, act) if conv is None else (norm, act, conv)

    def intact(self) -> bool:
        """Whether all are still swapped, and nobody wants to see what passes between them."""
        return not any(not isinstance(part, _SwappedInEnd) or has_hooks(part) for part in self.parts)

    def compute(self, x: Tensor) -> Tensor:
        arguments = self._arguments(x)
        if len(self.parts) == 2:
            return group_norm_silu(*arguments)
        if CONV_OP.select(*arguments) != "reference":
            return norm_silu_conv3x3(*arguments)
        # Few output channels (3 of a large image): no fused backend, but norm and SiLU are worth one.
        norm, conv = self.parts[0], self.parts[2]
        return F.conv2d(
            group_norm_silu(x, _weights(norm), norm.num_groups, norm.eps), conv.weight, conv.bias, padding=1
        )

    def describe(self) -> SwappedPart:
        norm = self.parts[0]
        parameters = (tensor for part in self.parts for tensor in part.parameters())
        x = next(parameters, torch.empty(0)).new_empty(()).expand(1, norm.num_channels, _SIDE, _SIDE)
        what = "norm and SiLU" if len(self.parts) == 2 else "norm, SiLU and convolution"
        return SwappedPart(f"{what}, {norm.num_channels} channels", explain(self._op(), *self._arguments(x)))

    def _op(self) -> Callable[..., Tensor]:
        return group_norm_silu if len(self.parts) == 2 else norm_silu_conv3x3

    def _arguments(self, x: Tensor) -> tuple[Any, ...]:
        norm, conv = self.parts[0], self.parts[2:]
        return x, _weights(norm), *(ConvWeights(part.weight, part.bias) for part in conv), norm.num_groups, norm.eps


def _weights(norm: Any) -> GroupNormWeights:
    return GroupNormWeights(norm.weight, norm.bias)


def _is_pointwise(conv: Any) -> bool:
    return (
        type(conv) is nn.Conv2d
        and conv.kernel_size == conv.stride == (1, 1)
        and conv.padding == (0, 0)
        and conv.groups == 1
        and not has_hooks(conv)
    )


def _drops(dropout: Any) -> bool:
    return dropout is not None and getattr(dropout, "p", 0.0) > 0.0


def _together(tensors: list[Tensor]) -> Tensor:
    """The tensors one below the other; made once for each version of them where no gradient is wanted."""
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if wanted or torch.compiler.is_compiling():
        return torch.cat(tensors)
    return derived(tensors, "together", lambda: torch.cat(tensors))


# ---- planning --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A part that can be swapped. `name` is that of what the report calls swapped."""

    name: str
    kind: str
    module: nn.Module

    def swap(self) -> SwappedPart:
        """Make it compute through the ops from now on."""
        swapped = _swap(self.module, self.kind)
        return swapped.describe()


_WHY_NOT: dict[str, Callable[[Any], str | None]] = {
    "res block": recognise_unet.why_not_res_block,
    "attention": recognise_unet.why_not_attention,
    "upsampling": recognise_unet.why_not_upsampling,
    "network": recognise_unet.why_not_network,
}
_MIXINS: dict[str, type[_SwappedUnetPart]] = {
    "res block": SwappedResBlock,
    "attention": SwappedAttention,
    "upsampling": SwappedUpsampling,
    "network": SwappedNetwork,
}


def plan(name: str, module: nn.Module, kind: str, verify: bool, plans: Iterable[Plan]) -> Plan | str:
    """How to swap what `recognise_unet.candidates` found, or why not."""
    if kind == "norm and SiLU":
        reason = recognise_unet.why_not_norm_and_silu(module)
        return reason if reason is not None else Plan(f"{name}.conv_norm_out".lstrip("."), kind, module)
    reason = _WHY_NOT[kind](module)
    if reason is not None:
        return reason
    if kind == "network":
        return Plan(f"{name}.dtype".lstrip("."), kind, module)
    checked = any(other.kind == kind and runs_the_same_code(other.module, module) for other in plans)
    if verify and not checked:
        difference = probe_unet.why_different(module, kind, lambda copied: _swap(copied, kind))
        if difference is not None:
            return difference
    return Plan(name, kind, module)


def already(name: str, module: nn.Module, kind: str) -> tuple[str, SwappedPart] | None:
    """Name and description if an earlier call swapped this candidate."""
    part: Any = module
    inside = {"norm and SiLU": "conv_norm_out", "network": "dtype"}.get(kind, "")
    if kind == "norm and SiLU":
        part = module.conv_norm_out
    return (f"{name}.{inside}".strip("."), part.describe()) if isinstance(part, _SwappedUnetPart) else None


def _swap(module: Any, kind: str) -> _SwappedUnetPart:
    if kind == "norm and SiLU":
        conv = module._modules.get("conv_out")
        fits = recognise_unet.why_not_last_conv(conv, module.conv_norm_out.num_channels) is None
        end = _End(module.conv_norm_out, module.conv_act, conv if fits else None)
        for part in end.parts:
            _change(part, _SwappedInEnd)._end = end
        return end.parts[0]
    return _change(module, _MIXINS[kind])


def _change(module: Any, mixin: type[_SwappedUnetPart]) -> Any:
    module.__class__ = swapped_class(mixin, type(module))
    module._unet_parts = tuple(map(type, module.unet_parts()))
    return module
