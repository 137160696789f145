"""The binding refuses memory that a kernel would step out of, whatever the Python in front of it computes."""

from __future__ import annotations

import pytest
import torch
from ops import BLOCK_OPS, MODULES, gradients, on, public

import swintormer_kernels as sk
from swintormer_kernels import native
from swintormer_kernels.backends.cpu.layout import dense, view
from swintormer_kernels.testing.cases import case_of

WEIGHTS = ("Norm", "Conv", "Linear", "Attention", "Ffn", "AttentionGrads", "FfnGrads")
CASES = {name: "window 8, C 16" if name in BLOCK_OPS else "modulated, batch 3" for name in MODULES}
CASES |= dict.fromkeys(("conv3x3_shuffle", "upsample_conv3x3"), "batch 3, odd sizes")


class Recorder:
    """In place of the extension: writes down what its entries are called with, weights as [kind, fields]."""

    def __init__(self, extension):
        self.extension, self.calls = extension, []

    def __getattr__(self, name):
        if name in WEIGHTS:
            return lambda **fields: [name, fields]

        def call(*sizes, **arguments):
            if not any(map(is_view, arguments.values())):
                return getattr(self.extension, name)(*sizes, **arguments)
            self.calls.append((name, arguments))
            return self.run(name, arguments)

        return call

    def run(self, name, arguments):
        getattr(self.extension, name)(**self.built(arguments))

    def built(self, fields):
        def one(value):
            return getattr(self.extension, value[0])(**self.built(value[1])) if isinstance(value, list) else value

        return {name: one(value) for name, value in fields.items()}


def spoilt(fields, change):
    """(name, value, the fields with `change(value)` in its place) of each of the weights' fields and arguments."""
    for name, value in fields.items():
        if isinstance(value, list):
            for inner, old, changed in spoilt(value[1], change):
                yield inner, old, {**fields, name: [value[0], changed]}
        elif (new := change(value)) is not None:
            yield name, value, {**fields, name: new}


def replaced(fields, name, number):
    return {
        key: number
        if key == name
        else [value[0], replaced(value[1], name, number)]
        if isinstance(value, list)
        else value
        for key, value in fields.items()
    }


def is_buffer(value):
    return isinstance(value, tuple) and len(value) == 3


def is_view(value):
    return isinstance(value, tuple) and len(value) in (4, 5)


@pytest.fixture
def recorder(extension, monkeypatch):
    recorder = Recorder(extension)
    monkeypatch.setattr(native, "extension", lambda: recorder)
    return recorder


@pytest.fixture(params=[*MODULES, "ddim_step"])
def calls(request, recorder):
    """Every call that an op's forward and backward make."""
    if request.param == "ddim_step":
        arguments, options = case_of("ddim_step", "image 4x140x210, v, guided").make(0)
        with sk.use_backend("cpu"):
            sk.ddim_step(*arguments, **options)
    else:
        arguments, _ = case_of(request.param, CASES[request.param]).make(0)
        op = public(request.param)
        gradients("cpu", op, arguments, torch.randn(on("reference", op, arguments).shape))
    assert recorder.calls
    return recorder.calls


def assert_refused(calls, recorder, change, message=None):
    """Each of a call's arguments and weights' fields that `change` gives another value for."""
    for entry, arguments in calls:
        for name, old, changed in spoilt(arguments, change):
            with pytest.raises(ValueError, match=message(old) if message else None):  # noqa: PT012
                recorder.run(entry, changed)
                pytest.fail(f"{entry} took another {name}")


def test_memory_of_the_wrong_size(calls, recorder):
    """One float less than the kernel would touch."""
    for entry, arguments in calls:
        assert entry == "ddim_step" or any(spoilt(arguments, lambda value: is_buffer(value) or None))
    assert_refused(
        calls,
        recorder,
        lambda value: (value[0], value[1] - 1, value[2]) if is_buffer(value) else None,
        lambda old: f"must hold .*{old[1]} floats, found {old[1] - 1}",
    )


def test_images_of_other_shapes(calls, recorder):
    def narrower(value):
        return (value[0], (*value[1][:-1], value[1][-1] - 1), *value[2:]) if is_view(value) else None

    def fewer_strides(value):
        return (*value[:2], value[2][:-1], *value[3:]) if is_view(value) else None

    assert_refused(calls, recorder, narrower)
    assert_refused(calls, recorder, fewer_strides, lambda _: "one stride for each size")


def test_images_in_planes_where_rows_of_channels_are_read(calls, recorder):
    def planes(value):
        return view(torch.zeros(value[1])) if is_view(value) and len(value[1]) == 4 else None

    if "swda" not in calls[0][0] and calls[0][0] not in ("gated_ffn", "ddim_step"):  # which take any strides
        assert_refused(calls, recorder, planes, lambda _: r"neighbours|all images must lie")


def test_numbers_that_do_not_fit(calls, recorder):
    """Groups and heads that do not divide the channels, a window that does not divide the sides, no shift of it."""
    numbers = ("groups", "heads", "window", "shift", "threads")
    for entry, arguments in calls:
        named = {name for name, *_ in spoilt(arguments, lambda value: value if isinstance(value, int) else None)}
        assert "threads" in named
        for number in named.intersection(numbers):
            for wrong in (-1, 11):
                if (number, wrong) != ("threads", 11):
                    with pytest.raises(ValueError, match="must"):
                        recorder.run(entry, replaced(arguments, number, wrong))


def test_calls_of_another_kind(calls, recorder):
    for name, recorded in calls:
        entry, arguments = getattr(recorder.extension, name), recorder.built(recorded)
        with pytest.raises(TypeError, match="incompatible"):
            entry(*arguments.values())
        for key, value in arguments.items():
            others = {other: value for other, value in arguments.items() if other != key}
            with pytest.raises(TypeError, match="incompatible"):
                entry(**others)
            if is_buffer(value):
                with pytest.raises(TypeError, match="incompatible"):
                    entry(**others, **{key: value[0]})


def test_packing_stays_inside_its_source(extension):
    order = extension.TileOrder(rows=[0, 3, -1, -1], columns=[0, 1, 2], tile=2)
    source, to = torch.arange(6.0), torch.empty(order.floats(False))
    extension.pack(to=dense(to), source=dense(source), order=order, bfloat16=False)
    assert to.tolist() == [0, 3, 1, 4, 2, 5] + [0] * 6
    pairs = torch.empty(order.floats(True))
    extension.pack(to=dense(pairs), source=dense(source), order=order, bfloat16=True)
    assert pairs.view(torch.bfloat16).tolist() == [0, 1, 3, 4, 2, 0, 5, 0] + [0] * 8
    with pytest.raises(ValueError, match="source must hold at least 6 floats, found 5"):
        extension.pack(to=dense(to), source=dense(source[:5]), order=order, bfloat16=False)
    with pytest.raises(ValueError, match="to must hold 12 floats, found 11"):
        extension.pack(to=dense(to[:11]), source=dense(source), order=order, bfloat16=False)
    with pytest.raises(ValueError, match="the tile must divide the rows"):
        extension.TileOrder(rows=[0, 3, -1], columns=[0], tile=2)
