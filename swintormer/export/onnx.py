"""A network as an ONNX file: written operator by operator, for tiles of one size in batches of any.

torch's own exporter takes minutes for this network and gives twice as many nodes and a file twice as large. Here
features are (B, H, W, C), so that norms and 1x1 convolutions are `LayerNormalization` and `MatMul`, a constant that
occurs twice is stored once, and masks are compared from the regions of a window's tokens as the file is loaded or run.

The restored picture is what `Swintormer` computes without a prior, to the rounding of float32.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from swintormer.checkpoint.checkpoint import Checkpoint, checkpoint_of
from swintormer.errors import InputError, SwintormerError
from swintormer.images.files import replacing
from swintormer.model.network import Swintormer
from swintormer_kernels.backends.reference.blocks import relative_position_index
from swintormer_kernels.nn import Attention, Block, ChannelNorm

OPSET = 17
"""The oldest with LayerNormalization; onnxruntime has it since 1.13."""

MASKED = -100.0
SMALLEST_NORM = 1e-12  # as torch.nn.functional.normalize


def export_onnx(net: Swintormer | Checkpoint, path: str | Path, tile: int | None = 256) -> None:
    """Write the network for input `image`, (B, C_in, tile, tile) float32 in [0, 1], and output `restored`.

    `restored` is (B, C_out, tile, tile), not clamped. Metadata holds the sizes as `swintormer.config`.

    Args:
        tile: side of the tiles in pixels. None for any height and width that are multiples of the network's stride:
            the same nodes, with shapes and masks that are computed from the image's.

    Raises:
        InputError: the network cannot take tiles of that side without padding.
        SwintormerError: onnx is not installed, or the file cannot be written.
    """
    checkpoint = checkpoint_of(net)
    model = onnx_model(checkpoint, tile)
    with replacing(Path(path)) as file:
        file.write(model.SerializeToString())


def onnx_model(checkpoint: Checkpoint, tile: int | None) -> Any:
    """The `onnx.ModelProto`; errors as of `export_onnx`."""
    try:
        import onnx
    except ImportError:
        raise SwintormerError("Exporting to ONNX needs onnx: pip install 'swintormer-kernels[export]'.") from None
    net = getattr(checkpoint.net, "_orig_mod", checkpoint.net)  # of torch.compile
    config = net.config
    if tile is not None and (tile < 1 or tile % config.stride):
        raise InputError(f"The tile must be a multiple of {config.stride} pixels for this network, found {tile}.")
    graph = _Graph(onnx)
    if tile is None:
        shape = graph.op("Shape", "image")
        height, width = (graph.op("Slice", shape, graph.constant([i]), graph.constant([i + 1])) for i in (2, 3))
        _network(graph, net, height, width)
    else:
        _network(graph, net, tile, tile)
    sides = ["height", "width"] if tile is None else [tile, tile]
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", channels, *sides])
        for name, channels in (("image", config.in_channels), ("restored", config.out_channels))
    ]
    made = onnx.helper.make_graph(graph.nodes, "swintormer", values[:1], values[1:], graph.initializers)
    model = onnx.helper.make_model(
        made, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=8, producer_name="swintormer"
    )
    metadata = {
        "swintormer.config": config.model_dump_json(),
        "swintormer.tile": str(tile or f"multiples of {config.stride}"),
    }
    onnx.helper.set_model_props(model, metadata | {f"swintormer.{k}": v for k, v in checkpoint.card.items()})
    return model


Side: TypeAlias = "int | str"
"""A length: a number, or the name of a tensor (1,) of int64 that holds it."""


class _Graph:
    """Nodes and constants of a graph in the making; values are known by their names."""

    def __init__(self, onnx: Any):
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._names: dict[bytes, str] = {}
        self._made: dict[tuple[Any, ...], str] = {}

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """A node's output, or its outputs; the same node again is not made again."""
        key = (kind, inputs, outputs, repr(sorted(attributes.items())))
        if key not in self._made:
            names = [f"{kind.lower()}_{len(self.nodes)}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
            self.nodes.append(self.onnx.helper.make_node(kind, inputs, names, **attributes))
            self._made[key] = " ".join(names)
        names = self._made[key].split()
        return names if outputs > 1 else names[0]

    def constant(self, value: Tensor | NDArray[Any] | np.generic | list[int] | float) -> str:
        """A tensor stored in the file, once for all its uses."""
        if isinstance(value, Tensor):
            value = value.detach().float().cpu().numpy()
        array = np.asarray(value, np.int64 if isinstance(value, list) else None)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        key = hashlib.blake2b(f"{array.dtype} {array.shape}".encode() + array.tobytes()).digest()
        if key not in self._names:
            self._names[key] = f"constant_{len(self._names)}"
            made = self.onnx.numpy_helper.from_array(np.array(array, order="C"), self._names[key])
            self.initializers.append(made)
        return self._names[key]

    def reshape(self, x: str, *shape: Side) -> str:
        return self.op("Reshape", x, self.sides(*shape))

    def sides(self, *shape: Side) -> str:
        """A shape as one tensor."""
        if all(isinstance(side, int) for side in shape):
            return self.constant([int(side) for side in shape])
        parts = [self.constant([side]) if isinstance(side, int) else side for side in shape]
        return self.op("Concat", *parts, axis=0)

    def divided(self, side: Side, by: int) -> Side:
        return side // by if isinstance(side, int) else self.op("Div", side, self.constant([by]))

    def product(self, one: Side, other: Side) -> Side:
        if isinstance(one, int) and isinstance(other, int):
            return one * other
        return self.op("Mul", self.sides(one), self.sides(other))

    def transpose(self, x: str, *order: int) -> str:
        return self.op("Transpose", x, perm=order)

    def pointwise(self, x: str, conv: nn.Module) -> str:
        """A 1x1 convolution of (..., C)."""
        weight, bias = _weights(conv)
        x = self.op("MatMul", x, self.constant(weight[:, :, 0, 0].T))
        return x if bias is None else self.op("Add", x, self.constant(bias))

    def conv3x3(self, x: str, conv: nn.Module, groups: int = 1) -> str:
        """Of (B, C, H, W), with zeros around."""
        parts = [self.constant(part) for part in _weights(conv) if part is not None]
        return self.op("Conv", x, *parts, kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=groups)

    def norm(self, x: str, norm: ChannelNorm) -> str:
        parts = [self.constant(part) for part in (norm.body.weight, norm.body.bias)]
        return self.op("LayerNormalization", x, *parts, axis=-1, epsilon=norm.body.eps)

    def rolled(self, x: str, by: int) -> str:
        """`torch.roll` of (B, H, W, C) along H and W."""
        for axis in (1, 2):
            cut = self.constant([-by])
            head = self.op("Slice", x, self.constant([0]), cut, self.constant([axis]))
            tail = self.op("Slice", x, cut, self.constant([2**31 - 1]), self.constant([axis]))
            x = self.op("Concat", tail, head, axis=axis)
        return x


def _weights(conv: nn.Module) -> tuple[Tensor, Tensor | None]:
    bias = conv.bias
    assert isinstance(conv.weight, Tensor)
    return conv.weight, bias if isinstance(bias, Tensor) else None


def _network(g: _Graph, net: Swintormer, height: Side, width: Side) -> None:
    """`Swintormer.forward` without a prior. Features are (B, H, W, C) between its parts."""
    config = net.config
    scaled = g.op("Sub", g.op("Mul", "image", g.constant(2.0)), g.constant(1.0))
    at = [(g.divided(height, 2**level), g.divided(width, 2**level)) for level in (1, 2, 3, 4)]
    embedded = _last(g, g.conv3x3(_unshuffled(g, scaled, config.in_channels, at[0], last=False), net.patch_embed.proj2))

    level1 = _stage(g, net.encoder_level1, embedded, at[0])
    level2 = _stage(g, net.encoder_level2, _down(g, net.down1_2, level1, at[1]), at[1])
    level3 = _stage(g, net.encoder_level3, _down(g, net.down2_3, level2, at[2]), at[2])
    y = _stage(g, net.latent, _down(g, net.down3_4, level3, at[3]), at[3])

    y = g.op("Concat", _up(g, net.up4_3, y), level3, axis=-1)
    y = _stage(g, net.decoder_level3, g.pointwise(y, net.reduce_chan_level3), at[2])
    y = g.op("Concat", _up(g, net.up3_2, y), level2, axis=-1)
    y = _stage(g, net.decoder_level2, g.pointwise(y, net.reduce_chan_level2), at[1])
    y = g.op("Concat", _up(g, net.up2_1, y), level1, axis=-1)
    y = _stage(g, net.refinement, _stage(g, net.decoder_level1, y, at[0]), at[0])
    y = g.op("Add", y, g.pointwise(embedded, net.skip_conv))

    y = g.op("DepthToSpace", g.conv3x3(_first(g, y), net.output[0]), blocksize=2, mode="CRD")
    base = "image"
    if config.in_channels != config.out_channels:
        bounds = [g.constant([n]) for n in (0, config.out_channels, 1)]
        base = g.op("Slice", "image", *bounds)
    half = g.op("Mul", y, g.constant(0.5))
    g.nodes.append(g.onnx.helper.make_node("Add", [base, half], ["restored"]))


def _first(g: _Graph, x: str) -> str:
    """(B, H, W, C) -> (B, C, H, W)."""
    return g.transpose(x, 0, 3, 1, 2)


def _last(g: _Graph, x: str) -> str:
    """(B, C, H, W) -> (B, H, W, C)."""
    return g.transpose(x, 0, 2, 3, 1)


def _unshuffled(g: _Graph, x: str, channels: int, size: tuple[Side, Side], last: bool) -> str:
    """PixelUnshuffle(2) of (B, C, 2H, 2W), with the size (H, W): (B, H, W, 4C) or (B, 4C, H, W).

    ONNX's SpaceToDepth has another order of channels.
    """
    height, width = size
    x = g.reshape(x, -1, channels, height, 2, width, 2)
    if last:
        return g.reshape(g.transpose(x, 0, 2, 4, 1, 3, 5), -1, height, width, 4 * channels)
    return g.reshape(g.transpose(x, 0, 1, 3, 5, 2, 4), -1, 4 * channels, height, width)


def _down(g: _Graph, down: nn.Module, x: str, size: tuple[Side, Side]) -> str:
    """To the size, which is half of that of x."""
    conv: Any = down.get_submodule("body.0")
    return _unshuffled(g, g.conv3x3(_first(g, x), conv), conv.out_channels, size, last=True)


def _up(g: _Graph, up: nn.Module, x: str) -> str:
    y = g.conv3x3(_first(g, x), up.get_submodule("body.0"))
    return _last(g, g.op("DepthToSpace", y, blocksize=2, mode="CRD"))


def _stage(g: _Graph, blocks: nn.Module, x: str, size: tuple[Side, Side]) -> str:
    for block in blocks.children():
        assert isinstance(block, Block)
        branch = g.norm(x, block.norm1)
        if block.shift:
            branch = g.rolled(branch, -block.shift)
        branch = _attention(g, block.attn, branch, size, block.shift)
        if block.shift:
            branch = g.rolled(branch, block.shift)
        x = g.op("Add", x, branch)
        one, two = g.op("Split", g.pointwise(g.norm(x, block.norm2), block.ffn.project_in), outputs=2, axis=-1)
        x = g.op("Add", x, g.pointwise(g.op("Mul", one, two), block.ffn.project_out))
    return x


def _attention(g: _Graph, attn: Attention, x: str, size: tuple[Side, Side], shift: int) -> str:
    """Both halves in the windows of the rolled map, (B, H, W, C) -> the same; see backends/reference/blocks.py."""
    w, heads = attn.window, attn.logit_scale.shape[0]
    down, across = (g.divided(side, w) for side in size)
    channels, windows, tokens = attn.qkv.in_channels, g.product(down, across), w * w

    qkv = g.reshape(g.pointwise(x, attn.qkv), -1, down, w, across, w, 3 * channels)
    qkv = g.reshape(g.transpose(qkv, 0, 1, 3, 5, 2, 4), -1, 3 * channels, w, w)
    qkv = g.conv3x3(qkv, attn.qkv_dwconv, groups=3 * channels)
    # (B, windows, q k v of one half and of the other, heads, d, N)
    qkv = g.reshape(qkv, -1, windows, 6, heads, channels // 2 // heads, tokens)
    q, k, v, cq, ck, cv = g.op("Split", qkv, outputs=6, axis=2)
    q, k, v, cq, ck, cv = (g.op("Squeeze", part, g.constant([2])) for part in (q, k, v, cq, ck, cv))

    scale = attn.logit_scale.detach().clamp(max=math.log(100)).exp()
    q = g.op("Mul", _normalized(g, q, -2), g.constant(scale))
    logits = g.op("MatMul", _swapped(g, q), _normalized(g, k, -2))
    table = 16 * torch.sigmoid(attn.bias_table().detach().cpu())
    bias = table[relative_position_index(w, table.device)].permute(2, 0, 1)  # (heads, N, N)
    logits = g.op("Add", logits, g.constant(bias))
    if shift:
        logits = g.op("Add", logits, _mask(g, size, w, shift))
    first = g.transpose(_weighted(g, logits, _swapped(g, v)), 0, 1, 3, 2, 4)  # (B, windows, N, heads, d)

    logits = g.op("MatMul", _normalized(g, cq, -1), _swapped(g, _normalized(g, ck, -1)))
    second = g.transpose(_weighted(g, logits, cv), 0, 1, 4, 2, 3)
    halves = [g.reshape(half, -1, windows, tokens, channels // 2) for half in (first, second)]
    y = g.pointwise(g.op("Concat", *halves, axis=-1), attn.project_out)
    y = g.transpose(g.reshape(y, -1, down, across, w, w, channels), 0, 1, 3, 2, 4, 5)
    return g.reshape(y, -1, *size, channels)


def _swapped(g: _Graph, x: str) -> str:
    return g.transpose(x, 0, 1, 2, 4, 3)


def _normalized(g: _Graph, x: str, axis: int) -> str:
    length = g.op("ReduceL2", x, axes=[axis], keepdims=1)
    return g.op("Div", x, g.op("Max", length, g.constant(np.float32(SMALLEST_NORM))))


def _weighted(g: _Graph, logits: str, values: str) -> str:
    """exp(l - m) / (1 + sum exp(l - m)) @ values, m the maximum of a row.

    With p the softmax of l, whose largest element is 1 / sum exp(l - m), the weights are p / (1 + max p).
    """
    p = g.op("Softmax", logits, axis=-1)
    divisor = g.op("Add", g.op("ReduceMax", p, axes=[-1], keepdims=1), g.constant(1.0))
    return g.op("Div", g.op("MatMul", p, values), divisor)


def _mask(g: _Graph, size: tuple[Side, Side], window: int, shift: int) -> str:
    """(1, windows, 1, N, N): -100 between tokens of different regions of the rolled map, from the regions alone."""
    rows, columns = (_bands(g, side, window, shift) for side in size)
    rows = g.op("Mul", g.reshape(rows, -1, 1), g.constant([3]))
    regions = g.op("Add", rows, g.reshape(columns, 1, -1))
    down, across = (g.divided(side, window) for side in size)
    regions = g.transpose(g.reshape(regions, down, window, across, window), 0, 2, 1, 3)
    one, other = (g.reshape(regions, 1, -1, 1, *sides) for sides in ((window**2, 1), (1, window**2)))
    return g.op("Where", g.op("Equal", one, other), g.constant(0.0), g.constant(MASKED))


def _bands(g: _Graph, side: Side, window: int, shift: int) -> str:
    """(side,) int64: 1 in the last window, 2 in its last `shift` rows, 0 before."""
    zero, one = (g.constant(np.int64(number)) for number in (0, 1))
    place = g.op("Range", zero, g.op("Squeeze", g.sides(side)), one)
    later = [g.op("GreaterOrEqual", place, g.op("Sub", g.sides(side), g.constant([back]))) for back in (window, shift)]
    return g.op("Add", *(g.op("Cast", part, to=g.onnx.TensorProto.INT64) for part in later))
