"""Parts of diffusers' U-Nets and autoencoders: recognised by class, names and shapes, swapped for the ops.

ResNet blocks, self-attention and upsample layers are taken only if they are of diffusers' own classes: the forward of
any other class may compute anything, whatever its parts are. diffusers itself is not imported.

What a swapped part cannot take (other arguments, hooks or other modules put on its inner parts later, dropout while
training) goes to its own forward, as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

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
    swap_class,
    why_hooked,
    why_not_conv,
    why_not_swappable,
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


class SwappedResnetBlock(SwappedModule):
    """A ResNet block as one `res_block` where a backend has that, else as two `norm_silu_conv3x3`."""

    norm1: Any  # parts are of the block's own classes
    conv1: Any
    norm2: Any
    conv2: Any
    dropout: Any
    conv_shortcut: Any
    time_emb_proj: Any
    time_embedding_norm: str
    skip_time_act: bool
    output_scale_factor: float

    def forward(self, input_tensor: Any, temb: Any = None, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or not self._takes(input_tensor, temb):
            return super().forward(input_tensor, temb, *args, **kwargs)
        norm2, embedding = self._time(temb, input_tensor.shape[0])
        whole = self._whole(input_tensor, norm2, embedding)
        out = None if whole is None else fused_res_block(input_tensor, *whole)  # None: it would go to the reference
        if out is None:
            hidden = norm_silu_conv3x3(*self._first_half(input_tensor, embedding))
            conv2 = ConvWeights(self.conv2.weight, self.conv2.bias, skip=self._skip(input_tensor))
            out = norm_silu_conv3x3(hidden, norm2, conv2, self.norm2.num_groups, self.norm2.eps)
        return out if self.output_scale_factor == 1.0 else out / self.output_scale_factor

    def _takes(self, x: Any, temb: Any) -> bool:
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != self.norm1.num_channels:
            return False
        if self.time_emb_proj is None:
            if temb is not None:  # diffusers adds it as it comes
                return False
        elif not isinstance(temb, Tensor) or temb.ndim != 2 or temb.shape[0] not in (1, x.shape[0]):
            return False
        return not _drops(self, self.dropout) and self.unchanged()

    def _whole(
        self, x: Tensor, norm2: GroupNormWeights, embedding: Tensor | None
    ) -> tuple[ResBlockWeights, Norms] | None:
        """What `res_block` takes beside x, or None where it is not asked."""
        shortcut = self.conv_shortcut
        if not x.is_cpu or asked_backend() not in (None, "cpu") or (shortcut and not _is_pointwise(shortcut)):
            return None
        block = ResBlockWeights(
            *(self.conv1.weight, self.conv2.weight, self.conv1.bias, self.conv2.bias),
            *(self.norm1.weight, self.norm1.bias, norm2.weight, norm2.bias),
            *(embedding, norm2.scale, norm2.shift),
            *((shortcut.weight, shortcut.bias) if shortcut else (None, None)),
        )
        return block, Norms(self.norm1.num_groups, self.norm2.num_groups, self.norm1.eps, self.norm2.eps)

    def _first_half(self, x: Tensor, embedding: Tensor | None) -> tuple[Any, ...]:
        """What the first `norm_silu_conv3x3` takes."""
        conv1 = ConvWeights(self.conv1.weight, self.conv1.bias, embedding)
        return x, _weights(self.norm1), conv1, self.norm1.num_groups, self.norm1.eps

    def _skip(self, x: Tensor) -> Tensor:
        """What the block adds: its input, by way of the shortcut if it has one."""
        shortcut = self.conv_shortcut
        if shortcut is None:
            return x
        if not (_is_pointwise(shortcut) and x.is_contiguous(memory_format=torch.channels_last)):
            return shortcut(x)
        # A matrix product: of 96 to 32 channels at 32 x 32 pixels it takes a third of the convolution's time.
        rows = F.linear(x.permute(0, 2, 3, 1), shortcut.weight.flatten(1), shortcut.bias)
        return rows.permute(0, 3, 1, 2)

    def _time(self, temb: Tensor | None, batch: int) -> tuple[GroupNormWeights, Tensor | None]:
        """norm2 with the embedding's modulation, and the embedding that is added to conv1's result."""
        if temb is None:
            return _weights(self.norm2), None
        active = temb if self.skip_time_act else F.silu(temb)
        embedding = F.linear(active, self.time_emb_proj.weight, self.time_emb_proj.bias).expand(batch, -1)
        return self._modulated(embedding)

    def _modulated(self, embedding: Tensor) -> tuple[GroupNormWeights, Tensor | None]:
        if self.time_embedding_norm == "default":
            return _weights(self.norm2), embedding
        scale, shift = embedding.chunk(2, dim=1)
        return _weights(self.norm2)._replace(scale=scale, shift=shift), None

    def parts(self) -> tuple[Any, ...]:
        names = ("norm1", "conv1", "norm2", "conv2", "nonlinearity", "dropout", "time_emb_proj")
        return tuple(self._modules.get(name) for name in names)

    def describe(self) -> SwappedPart:
        x, norm2, embedding = _example(self.conv1, self.conv1.in_channels), _weights(self.norm2), None
        if self.time_emb_proj is not None:
            norm2, embedding = self._modulated(x.new_empty(()).expand(1, self.time_emb_proj.out_features))
        what = f"ResNet block, {self.conv1.in_channels} to {self.conv2.out_channels} channels"
        whole = self._whole(x, norm2, embedding)
        if whole is not None:
            explanation = explain(res_block, x, whole[0], *whole[1])
            if explanation.backend != "reference":
                return SwappedPart(what, explanation)
        return SwappedPart(what, explain(norm_silu_conv3x3, *self._first_half(x, embedding)))


class SwappedAttention(SwappedModule):
    """Self-attention with queries, keys and values from one product, through scaled_dot_product_attention."""

    to_q: Any  # parts are of the attention's own classes
    to_k: Any
    to_v: Any
    to_out: Any
    group_norm: Any
    processor: Any
    heads: int
    residual_connection: bool
    rescale_output_factor: float

    def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        if args or not self._takes(hidden_states, kwargs):
            return super().forward(hidden_states, *args, **kwargs)
        out = self._attend(hidden_states)
        if self.residual_connection:
            out = out + hidden_states
        return out if self.rescale_output_factor == 1.0 else out / self.rescale_output_factor

    def _takes(self, x: Any, options: dict[str, Any]) -> bool:
        if not isinstance(x, Tensor) or x.ndim not in (3, 4):
            return False
        if any(value is not None for name, value in options.items() if name != "temb"):
            return False
        return not _drops(self, self.to_out[-1]) and self.unchanged()

    def _attend(self, x: Tensor) -> Tensor:
        product = self._queries_keys_values(x)
        q, k, v = product.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out = F.linear(attended, self.to_out[0].weight, self.to_out[0].bias)
        return out if x.ndim == 3 else out.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)

    def _queries_keys_values(self, x: Tensor) -> Tensor:
        """(B, tokens, 3 C) of x as it comes or normed: norm and product as one op where a backend wins with that."""
        norm, parts = self.group_norm, (self.to_q, self.to_k, self.to_v)
        weight = _together([part.weight for part in parts])
        bias = None if self.to_q.bias is None else _together([part.bias for part in parts])
        if norm is None:
            return F.linear(x if x.ndim == 3 else x.permute(0, 2, 3, 1).flatten(1, 2), weight, bias)
        image = x if x.ndim == 4 else x.mT.unsqueeze(-1)
        arguments = image, _weights(norm), LinearWeights(weight, bias), norm.num_groups, norm.eps
        on_cpu = x.is_cpu and asked_backend() in (None, "cpu")
        if on_cpu and NORM_PROJECTION_OP.select(*arguments) != "reference":
            return norm_projection(*arguments)
        normed = torch.group_norm(x if x.ndim == 4 else x.mT, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return F.linear(normed.permute(0, 2, 3, 1).flatten(1, 2) if x.ndim == 4 else normed.mT, weight, bias)

    def parts(self) -> tuple[Any, ...]:
        parts = (self._modules.get(name) for name in ("to_q", "to_k", "to_v", "group_norm"))
        return (*parts, *self.to_out, self.processor)  # diffusers' Attention lets the last compute

    def describe(self) -> SwappedPart:
        return SwappedPart(f"attention, {self.to_q.in_features} channels, {self.heads} heads", None)


class SwappedUpsample(SwappedModule):
    """Nearest neighbours and a 3x3 convolution as one `upsample_conv3x3`."""

    conv: Any

    def forward(self, hidden_states: Any, output_size: Any = None, *args: Any, **kwargs: Any) -> Any:
        takes = isinstance(hidden_states, Tensor) and hidden_states.ndim == 4 and output_size is None
        if args or kwargs or not takes or not self.unchanged():
            return super().forward(hidden_states, output_size, *args, **kwargs)
        return upsample_conv3x3(hidden_states, UpsampleWeights(self.conv.weight, self.conv.bias))

    def parts(self) -> tuple[Any, ...]:
        return (self.conv,)

    def describe(self) -> SwappedPart:
        x = _example(self.conv, self.conv.in_channels)
        explanation = explain(upsample_conv3x3, x, UpsampleWeights(self.conv.weight, self.conv.bias))
        return SwappedPart(f"upsample, {self.conv.in_channels} channels", explanation)


class _SwappedInEnd(SwappedModule):
    """Part of the end of a network: norm, SiLU, and mostly a convolution. The last of them computes them all."""

    _swap_kept: _End

    def forward(self, x: Tensor) -> Tensor:
        end = self._swap_kept
        if x.ndim != 4 or not end.intact():
            return super().forward(x)
        return end.compute(x) if end.parts[-1] is self else x

    def parts(self) -> tuple[Any, ...]:
        return ()

    def describe(self) -> SwappedPart:
        return self._swap_kept.describe()


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
        channels, op = self.parts[0].num_channels, group_norm_silu if len(self.parts) == 2 else norm_silu_conv3x3
        what = "norm and SiLU" if len(self.parts) == 2 else "norm, SiLU and convolution"
        explanation = explain(op, *self._arguments(_example(nn.ModuleList(self.parts), channels)))
        return SwappedPart(f"{what}, {channels} channels", explanation)

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


def _drops(module: nn.Module, dropout: Any) -> bool:
    return module.training and getattr(dropout, "p", 0.0) > 0.0


def _example(module: nn.Module, channels: int) -> Tensor:
    """An input for the report: one number, whatever the size."""
    return next(module.parameters(), torch.empty(0)).new_empty(()).expand(1, channels, _SIDE, _SIDE)


def _together(tensors: list[Tensor]) -> Tensor:
    """The tensors one below the other; made once for each version of them where no gradient is wanted."""
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if wanted or torch.compiler.is_compiling():
        return torch.cat(tensors)
    return packed_weight(tensors, "together", lambda: torch.cat(tensors))


# ---- recognition -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """A class of diffusers that is swapped, and what is required of a module of it."""

    name: str
    mixin: type[SwappedModule]
    mark: str  # attribute that a module must have, beside its parts, to be spoken of
    required: Mapping[str, type]  # parts and their exact classes; nn.Module for any
    optional: Mapping[str, type]
    why_not: Callable[[Any], str | None]  # what else is required


def _why_not_resnet_block(block: Any) -> str | None:
    if block.time_embedding_norm not in ("default", "scale_shift"):
        return f"its time_embedding_norm is {block.time_embedding_norm!r}, and the op has 'default' and 'scale_shift'"
    if block.time_embedding_norm == "scale_shift" and block.time_emb_proj is None:
        return "its time_embedding_norm is 'scale_shift' without a time_emb_proj"
    resampling = [name for name in ("upsample", "downsample") if getattr(block, name) is not None]
    if resampling:
        return f"it changes the resolution between norm and convolution ({resampling[0]})"
    return (
        why_not_conv("conv1", block.conv1, 3)
        or why_not_conv("conv2", block.conv2, 3)
        or _why_dropout(block, block.dropout)
    )


def _why_not_attention(attention: Any) -> str | None:
    processor = type(attention.processor)
    if processor.__name__ not in _PROCESSORS or not _of_diffusers(processor):
        found, known = f"{processor.__module__}.{processor.__name__}", " and ".join(sorted(_PROCESSORS))
        return f"its processor is {found}, which may compute anything; known are diffusers' {known}"
    if attention.is_cross_attention:
        return "it is cross-attention: queries and keys come from different inputs, so there is no common product"
    products = (attention.to_q, attention.to_k, attention.to_v)
    shapes, biases = {part.weight.shape for part in products}, {part.bias is None for part in products}
    if len(shapes) > 1 or len(biases) > 1:
        return f"to_q, to_k and to_v must be alike, found weights of {', '.join(str(tuple(s)) for s in sorted(shapes))}"
    if type(attention.to_out[0]) is not nn.Linear:
        return "to_out must be a list that begins with a plain Linear"
    return _why_dropout(attention, attention.to_out[-1])


def _why_not_upsample(module: Any) -> str | None:
    if not module.interpolate:
        return "it does not change the resolution"
    return why_not_conv("conv", module.conv, 3)


_KINDS = {
    "ResnetBlock2D": _Kind(
        "ResNet block",
        SwappedResnetBlock,
        "norm1",
        {"norm1": nn.GroupNorm, "conv1": nn.Conv2d, "norm2": nn.GroupNorm, "conv2": nn.Conv2d},
        {"nonlinearity": nn.SiLU, "time_emb_proj": nn.Linear}
        | dict.fromkeys(("dropout", "conv_shortcut", "upsample", "downsample"), nn.Module),
        _why_not_resnet_block,
    ),
    "Attention": _Kind(
        "attention",
        SwappedAttention,
        "to_q",
        {"to_q": nn.Linear, "to_k": nn.Linear, "to_v": nn.Linear, "to_out": nn.ModuleList},
        {"group_norm": nn.GroupNorm},
        _why_not_attention,
    ),
    "Upsample2D": _Kind("upsample", SwappedUpsample, "use_conv_transpose", {"conv": nn.Conv2d}, {}, _why_not_upsample),
}


def find(model: nn.Module) -> Iterator[tuple[str, SwappedPart | str | Callable[[], SwappedPart]]]:
    """(name, what it is) of every module with the parts of a known class, and of norm and SiLU that end a network.

    What swaps it and describes it; or why it is kept; or the description of what an earlier call swapped. The end of a
    network is found by its owner's `conv_norm_out` and `conv_act`; a `conv_out` after them goes with them if it can.
    """
    for name, module in model.named_modules():
        parts = module._modules.keys()
        kinds = [kind for kind in _KINDS.values() if kind.required.keys() <= parts and hasattr(module, kind.mark)]
        if kinds:
            if isinstance(module, SwappedModule):
                yield name, module.describe()
            else:
                reason = _why_not(module, kinds[0])
                yield name, f"{kinds[0].name}: {reason}" if reason else partial(_swap, module, kinds[0].mixin)
        elif parts >= {"conv_norm_out", "conv_act"}:
            yield _find_end(name, module)


def _find_end(name: str, owner: Any) -> tuple[str, SwappedPart | str | Callable[[], SwappedPart]]:
    norm, act, conv = (owner._modules.get(part) for part in ("conv_norm_out", "conv_act", "conv_out"))
    whole = f"{name}.conv_norm_out".lstrip(".")
    if isinstance(norm, SwappedModule):
        return whole, norm.describe()
    reason = (
        _why_class_differs("conv_act", act, nn.SiLU)
        or _why_class_differs("conv_norm_out", norm, nn.GroupNorm)
        or why_hooked({"conv_norm_out": norm, "conv_act": act})
    )
    if reason is not None:
        return name, f"norm and SiLU: {reason}"
    fits = why_not_conv("conv_out", conv, 3) is None and not has_hooks(conv) and conv.in_channels == norm.num_channels
    return whole, partial(_swap_end, _End(norm, act, conv if fits else None))


def _swap(module: Any, mixin: type[SwappedModule]) -> SwappedPart:
    swap_class(module, mixin)
    described: SwappedPart = module.describe()
    return described


def _swap_end(end: _End) -> SwappedPart:
    for part in end.parts:
        swap_class(part, _SwappedInEnd, end)
    return end.describe()


def _of_diffusers(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "diffusers"


def _why_not(module: nn.Module, kind: _Kind) -> str | None:
    """None if the module can be swapped, else the first difference."""
    cls = next(cls for cls in type(module).__mro__ if "forward" in vars(cls))  # wrappers and sharding derive classes
    if _KINDS.get(cls.__name__) is not kind or not _of_diffusers(cls):
        return f"its forward is that of {cls.__module__}.{cls.__name__}, which may compute anything"
    known = {**kind.required, **kind.optional}
    for name, part in module._modules.items():
        if part is not None and name not in known:
            return f"its part {name} ({type(part).__name__}) has no place in it"
        reason = _why_class_differs(name, part, known[name]) if part is not None else None
        if reason is not None:
            return reason
    return kind.why_not(module) or why_not_swappable(module)


def _why_class_differs(name: str, part: Any, wanted: type) -> str | None:
    if wanted is nn.Module or type(part) is wanted:
        return None
    return f"{name} is a {type(part).__name__}, not a plain {wanted.__name__}"


def _why_dropout(module: nn.Module, dropout: Any) -> str | None:
    if _drops(module, dropout):
        return f"it drops values while training (p = {dropout.p}), and the op has no dropout; call model.eval() first"
    return None
