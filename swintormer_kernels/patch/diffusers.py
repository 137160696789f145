"""Parts of diffusers' U-Nets and autoencoders: recognised by class, names and shapes, swapped for the ops.

ResNet blocks, self-attention and upsample layers are taken only if they are of diffusers' own classes: the forward of
any other class may compute anything, whatever its parts are. diffusers itself is not imported.

What a swapped part cannot take (other arguments, hooks or other modules put on its inner parts later, dropout while
training) goes to its own forward, as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swintormer_kernels.ops.group_norm_silu import group_norm_silu
from swintormer_kernels.ops.norm_projection import OP as NORM_PROJECTION_OP
from swintormer_kernels.ops.norm_projection import norm_projection
from swintormer_kernels.ops.norm_silu_conv3x3 import OP as CONV_OP
from swintormer_kernels.ops.norm_silu_conv3x3 import norm_silu_conv3x3
from swintormer_kernels.ops.res_block import fused_res_block, res_block
from swintormer_kernels.ops.upsample_conv3x3 import upsample_conv3x3
from swintormer_kernels.packed import packed_weight
from swintormer_kernels.patch.swap import (
    SwappedModule,
    has_hooks,
    swapped_class,
    unwrapped,
    why_forward_fixed,
    why_hooked,
    why_tensors_unfit,
)
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
_RESNET_BLOCK = {"norm1", "conv1", "norm2", "conv2"}
_RESNET_BLOCK_MORE = {"nonlinearity", "time_emb_proj", "dropout", "conv_shortcut"}
_ATTENTION = {"to_q", "to_k", "to_v", "to_out"}
_ATTENTION_MORE = {"group_norm"}
_PROCESSORS = {"AttnProcessor", "AttnProcessor2_0"}  # of diffusers: plain attention, by hand and by torch's function


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


class SwappedResnetBlock(_SwappedUnetPart):
    """A ResNet block as one `res_block` where a backend has that, else as two `norm_silu_conv3x3`."""

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
        whole = self._whole(x, norm2, embedding)
        return None if whole is None else fused_res_block(x, *whole)

    def _whole(
        self, x: Tensor, norm2: GroupNormWeights, embedding: Tensor | None
    ) -> tuple[ResBlockWeights, Norms] | None:
        """What `res_block` takes beside x, or None where it is not asked."""
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
        return block, Norms(norm1.num_groups, parts["norm2"].num_groups, norm1.eps, parts["norm2"].eps)

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
        projection: Any = self._modules.get("time_emb_proj")
        if projection is None or temb is None:
            return self._modulated(None)
        active = temb if getattr(self, "skip_time_act", False) else F.silu(temb)
        return self._modulated(F.linear(active, projection.weight, projection.bias).expand(batch, -1))

    def _modulated(self, embedding: Tensor | None) -> tuple[GroupNormWeights, Tensor | None]:
        norm = _weights(self._modules["norm2"])
        if embedding is None or getattr(self, "time_embedding_norm", "default") == "default":
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
        x = self.conv1.weight.new_empty(()).expand(1, self.conv1.in_channels, _SIDE, _SIDE)
        projection = self._modules.get("time_emb_proj")
        embedding = None if projection is None else x.new_empty(()).expand(1, cast(Any, projection).out_features)
        what = f"ResNet block, {self.conv1.in_channels} to {self.conv2.out_channels} channels"
        norm2, embedding = self._modulated(embedding)
        whole = self._whole(x, norm2, embedding)
        if whole is not None:
            explanation = explain(res_block, x, whole[0], *whole[1])
            if explanation.backend != "reference":
                return SwappedPart(what, explanation)
        conv1 = ConvWeights(self.conv1.weight, self.conv1.bias, embedding)
        arguments = x, _weights(self.norm1), conv1, self.norm1.num_groups, self.norm1.eps
        return SwappedPart(what, explain(norm_silu_conv3x3, *arguments))


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


class SwappedUpsample(_SwappedUnetPart):
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
        return SwappedPart(f"upsample, {self.conv.in_channels} channels", explanation)


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
    return packed_weight(tensors, "together", lambda: torch.cat(tensors))


# ---- swapping --------------------------------------------------------------------------------------------------------


def why_not(module: Any, kind: str) -> str | None:
    """None if what `candidates` found can be swapped, else the first difference."""
    return {
        "ResNet block": why_not_resnet_block,
        "attention": why_not_attention,
        "upsample": why_not_upsample,
        "norm and SiLU": why_not_norm_and_silu,
    }[kind](module)


def name_of(name: str, kind: str) -> str:
    """What the report calls a candidate: for the end of a network, the name of its norm."""
    return f"{name}.conv_norm_out".lstrip(".") if kind == "norm and SiLU" else name


def swapped_before(module: Any, kind: str) -> SwappedPart | None:
    """The description of a candidate that an earlier call swapped."""
    part = module.conv_norm_out if kind == "norm and SiLU" else module
    return part.describe() if isinstance(part, _SwappedUnetPart) else None


def swap(module: Any, kind: str) -> SwappedPart:
    """Make a candidate compute through the ops from now on."""
    if kind == "norm and SiLU":
        conv = module._modules.get("conv_out")
        fits = why_not_last_conv(conv, module.conv_norm_out.num_channels) is None
        end = _End(module.conv_norm_out, module.conv_act, conv if fits else None)
        for part in end.parts:
            _change(part, _SwappedInEnd)._end = end
        return end.describe()
    mixins = {"ResNet block": SwappedResnetBlock, "attention": SwappedAttention, "upsample": SwappedUpsample}
    return _change(module, mixins[kind]).describe()


def _change(module: Any, mixin: type[_SwappedUnetPart]) -> Any:
    module.__class__ = swapped_class(mixin, type(module))
    module._unet_parts = tuple(map(type, module.unet_parts()))
    return module


# ---- recognition -----------------------------------------------------------------------------------------------------


def candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(name, module, kind) of what resembles a part, one of those below.

    "ResNet block", "attention", "upsample". "norm and SiLU": the module that holds the two as `conv_norm_out` and
    `conv_act`; a `conv_out` after them goes with them if it can.
    """
    for name, module in model.named_modules():
        parts = module._modules.keys()
        if parts >= _RESNET_BLOCK:
            yield name, module, "ResNet block"
        elif parts >= _ATTENTION:
            yield name, module, "attention"
        elif "conv" in parts and hasattr(module, "use_conv_transpose"):
            yield name, module, "upsample"
        elif parts >= {"conv_norm_out", "conv_act"}:
            yield name, module, "norm and SiLU"


def why_not_resnet_block(block: Any) -> str | None:
    """None if `block` can compute through two `norm_silu_conv3x3`, else the first difference."""
    resampling = [name for name in ("upsample", "downsample") if getattr(block, name, None) is not None]
    if resampling:
        return f"it changes the resolution between norm and convolution ({resampling[0]})"
    return (
        _why_not_replaceable(block, _RESNET_BLOCK | _RESNET_BLOCK_MORE, "ResnetBlock2D")
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
        or _why_not_replaceable(attention, _ATTENTION | _ATTENTION_MORE, "Attention")
        or _why_projections_differ(attention)
        or _why_dropout(attention, attention.to_out[-1])
    )


def why_not_upsample(module: Any) -> str | None:
    """None if `module` doubles the resolution by nearest neighbours and convolves the result, else why not."""
    if module.use_conv_transpose:
        return "it is a transposed convolution"
    if getattr(module, "norm", None) is not None:
        return "it has a norm before it changes the resolution"
    if not getattr(module, "interpolate", True):
        return "it does not change the resolution"
    return _why_not_replaceable(module, {"conv"}, "Upsample2D") or _why_not_conv3x3("conv", unwrapped(module.conv))


def why_not_norm_and_silu(owner: Any) -> str | None:
    """None if `owner.conv_norm_out` and `owner.conv_act` can compute through one `group_norm_silu`."""
    norm, act = owner.conv_norm_out, owner.conv_act
    if norm is None or act is None:
        return "one of the two is missing"
    return (
        _why_not_silu("conv_act", act)
        or _why_not_group_norm("conv_norm_out", norm)
        or why_hooked({"conv_norm_out": norm, "conv_act": act})
    )


def why_not_last_conv(conv: Any, channels: int) -> str | None:
    """None if `conv`, which follows the norm and SiLU, can be computed with them."""
    reason = _why_not_conv3x3("conv_out", conv) or why_hooked({"conv_out": conv})
    if reason is None and conv.in_channels != channels:
        return f"conv_out takes {conv.in_channels} channels, and the norm before it has {channels}"
    return reason


# ---- pieces ----------------------------------------------------------------------------------------------------------


def _why_class_differs(module: nn.Module, name: str) -> str | None:
    """None if the class, or the one a compile wrapper or sharding derived from it, runs diffusers' own forward."""
    cls = next((cls for cls in type(module).__mro__ if "forward" in vars(cls)), nn.Module)
    if cls.__name__ == name and cls.__module__.partition(".")[0] == "diffusers":
        return None
    found = f"{cls.__module__}.{cls.__name__}"
    return f"its forward is that of {found}, which may compute anything; known is diffusers' {name}"


def _why_not_replaceable(module: nn.Module, known: set[str], name: str) -> str | None:
    fixed = why_forward_fixed(module) or _why_class_differs(module, name)
    if fixed is not None:
        return fixed
    extra = sorted(name for name, part in module._modules.items() if part is not None and name not in known)
    if extra:
        return f"its part {extra[0]} ({type(module._modules[extra[0]]).__name__}) has no place in it"
    return why_tensors_unfit(module) or why_hooked({name: part for name, part in module.named_modules() if name})


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
