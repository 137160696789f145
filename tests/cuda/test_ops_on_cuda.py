"""Every op of the "cuda" backend beside the reference, end to end: packing, choice of the instance, grids, arguments.

On a machine without a GPU the kernels run on the emulated device.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from emulator import schedules_of
from ops import assert_as_good, assert_forward, assert_gradients, mapped, on

import swintormer_kernels as sk
from swintormer import NetworkConfig, Swintormer
from swintormer.model import network
from swintormer_kernels.backends.cuda import built as build_facts
from swintormer_kernels.backends.cuda import device, emulator
from swintormer_kernels.registry import BackendError, explain, use_backend
from swintormer_kernels.testing.block_cases import attention_weights, ffn_weights
from swintormer_kernels.testing.cases import CASES, case_of, cases_of
from swintormer_kernels.testing.denoiser_cases import conv_weights, norm_weights

pytestmark = pytest.mark.usefixtures("one_thread")

selfcheck = sys.modules["swintormer_kernels.selfcheck"]  # the package's attribute of that name is the function
OPS = {name: getattr(sk, name) for name in CASES if "cuda" in getattr(sk, name).op.serves}
HALVES = (torch.bfloat16, torch.float16)
MOST_ELEMENTS = 60_000  # of x: each thread is a fiber on the CPU

# Those of the denoiser's ops are here because the cases of tests and benches have other channels than multiples of 8.
NORMED = {
    "160 channels of 32 groups": ((2, 160, 5, 9), 32),
    "runs of unequal length": ((1, 64, 29, 31), 8),
    "a group, mean 1000": ((2, 24, 9, 7), 1),
    "a group for each channel": ((1, 16, 3, 4), 16),
    "one pixel": ((3, 8, 1, 1), 2),
    "2048 channels": ((1, 2048, 2, 3), 32),
}
CONVOLUTIONS = {
    "n 32": ((1, 40, 9, 17), 24, 4),
    "n 64, chunks": ((1, 72, 8, 16), 64, 8),
    "n 128": ((1, 32, 3, 5), 128, 4),
    "odd outputs": ((2, 24, 10, 7), 3, 3),
    "two blocks of outputs": ((1, 16, 5, 20), 72, 4),
    "one pixel": ((3, 8, 1, 1), 5, 2),
}


def moved(arguments, where, dtype):
    return mapped(lambda t: t.to(where, dtype), arguments)


def in_rows(x):
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def served_cases():
    for name, op in OPS.items():
        for case in cases_of(name):
            args, kwargs = case.make(0)
            if case.tested and args[0].numel() <= MOST_ELEMENTS:
                yield pytest.param(name, op, (args, kwargs), id=f"{name}, {case.name}")


def called(op, arguments):
    args, kwargs = arguments
    return lambda *given: op(*given, **kwargs), args


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("name", "op", "arguments"), list(served_cases()))
def test_the_cases_of_every_op(where, name, op, arguments, dtype):
    args, kwargs = moved(arguments, where, dtype)
    reason = op.op.why_not("cuda", *args, **kwargs)
    if reason is not None:
        with pytest.raises(BackendError) as told, use_backend("cuda"):
            op(*args, **kwargs)
        assert reason in str(told.value)
        return
    function, given = called(op, (args, kwargs))
    if name == "ddim_step":  # its tensors stand in a record among the keywords
        truth = on("reference", *called(op, mapped(lambda t: t.double(), (args, kwargs))))
        out = on("cuda", function, given)
        assert out.stride() == torch.empty_like(args[0]).stride()
        error = (out.double() - truth).abs()
        assert (error <= torch.finfo(dtype).eps / 2 * truth.abs() + 16 * torch.finfo(torch.float32).eps).all()
    else:
        assert_forward("cuda", function, given)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", NORMED)
def test_group_norms(where, case, dtype):
    shape, groups = NORMED[case]
    x = in_rows(torch.randn(shape) + 1000.0 * ("1000" in case))
    for modulated in (False, True):
        assert_forward(
            "cuda", sk.group_norm_silu, moved((x, norm_weights(*shape[:2], modulated), groups), where, dtype)
        )


def convolution(case, plain=False):
    shape, out, groups = CONVOLUTIONS[case]
    conv = conv_weights(shape[0], shape[1], out, shape[2:], plain)
    return in_rows(torch.randn(shape)), norm_weights(*shape[:2], modulated=not plain), conv, groups


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("plain", [False, True], ids=["everything added", "plain"])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions(where, case, plain, dtype):
    assert_forward("cuda", sk.norm_silu_conv3x3, moved(convolution(case, plain), where, dtype))


def test_every_instance_of_the_convolution_is_chosen_for_some_size(extension):
    choose, most = extension.cuda_choose_conv3x3, 227 * 1024
    sizes = ((160, 160, 32, 132, most), (320, 320, 8, 132, most), (640, 640, 512, 132, most))
    assert [choose(True, *given)[3] for given in sizes] == [64, 32, 128]
    for outputs in (3, 32, 160, 640):
        for patches in (1, 32, 1000):
            name, threads, shared, block = choose(False, 2048, outputs, patches, 132, 99 * 1024)
            assert name == f"norm_silu_conv3x3_n{block}_f16"
            assert (threads, shared <= 99 * 1024) == (256, True)


RACES = {
    "ddim_step": lambda: (sk.ddim_step, *case_of("ddim_step", "odd sizes, sliced").make(0)),
    "group_norm_silu": lambda: (sk.group_norm_silu, (in_rows(torch.randn(1, 24, 9, 8)), norm_weights(1, 24), 3), {}),
    **{
        f"norm_silu_conv3x3, {case}": lambda case=case: (sk.norm_silu_conv3x3, convolution(case), {})
        for case in ("n 32", "n 64, chunks", "n 128")
    },
}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", RACES)
def test_no_schedule_of_threads_and_copies_changes_a_bit_or_shows_a_race(emulated, monkeypatch, case, dtype):
    emulated("race")
    op, args, kwargs = RACES[case]()
    function, given = called(op, moved((args, kwargs), "cpu", dtype))
    found = []
    for schedule in schedules_of(dtype):
        for late in (False, True):
            monkeypatch.setattr(emulator, "options", emulator.Options(schedule, late_copies=late))
            found.append(on("cuda", function, given))
    assert all(torch.equal(found[0], out) for out in found[1:])


def test_a_cuda_forward_and_a_triton_backward_agree_with_the_reference(where):
    if sk.backends()["triton"] is not None:
        pytest.skip(sk.backends()["triton"])
    for op, (x, *rest) in {
        sk.group_norm_silu: (torch.randn(2, 16, 5, 6), norm_weights(2, 16, modulated=True), 4),
        sk.norm_silu_conv3x3: (*convolution("one pixel")[:3], 2),
        sk.gated_ffn: (torch.randn(1, 24, 2, 4), ffn_weights(24, 32)),
        sk.swda_attention: (torch.randn(1, 24, 8, 8), attention_weights(24, 1, 8), 8, 3),
    }.items():
        given = moved((in_rows(x), *rest), where, torch.bfloat16)
        assert op.op.backward_of("cuda", *given) == "triton"
        with torch.no_grad():
            grad = torch.randn_like(op(*given))
        assert_gradients("cuda", op, given, grad)


# ---- what explain() says ---------------------------------------------------------------------------------------------


def latent(dtype=torch.bfloat16):
    return torch.randn(2, 4, 3, 5).to(dtype)


def told(op, *args, **kwargs):
    return explain(op, *args, **kwargs).reasons["cuda"]


def test_emulated_kernels_are_taken_by_name_alone(emulated):
    emulated("plain")
    z = latent()
    alphas = {"alpha_bar_t": 0.25, "alpha_bar_s": 0.5}
    assert "emulated device, which is for tests" in told(sk.ddim_step, z, z, **alphas)
    with use_backend("cuda"):
        assert explain(sk.ddim_step, z, z, **alphas).backend == "cuda"


def test_inputs_that_are_declined(emulated):
    emulated("plain")
    x = in_rows(torch.randn(1, 16, 4, 4))
    norm = norm_weights(1, 16)
    assert told(sk.group_norm_silu, x, norm, 4) == "the cuda backend takes bfloat16 and float16, found float32"
    half, weights = moved((x, norm), "cpu", torch.bfloat16)
    assert "channels_last" in told(sk.group_norm_silu, half.contiguous(), weights, 4)
    assert "one dtype, found torch.bfloat16 and torch.float32" in told(sk.group_norm_silu, half, norm, 4)
    assert "multiples of 8 channels" in told(sk.group_norm_silu, half[:, :12], weights, 4)
    assert "no CUDA kernel" in sk.upsample_conv3x3.op.absent["cuda"]


FOUND = build_facts.Built(frozenset({"ddim_step"}), (13, 0), (80, 90, 100, 120), 90, None)
TOLD = "built by nvcc 13.0 for compute capability 8.x, 9.0, 10.x, 12.x and newer ones"


def on_a_gpu(monkeypatch, **changed):
    """A machine that has what is not in `changed`, as far as the sentences go."""
    facts = {"built": FOUND, "device": True, "driver": "", "version": 13000, "capability": (9, 0), **changed}

    class Extension:
        cuda_driver_absent = staticmethod(lambda: facts["driver"])
        cuda_driver_version = staticmethod(lambda: facts["version"])
        cuda_device_facts = staticmethod(lambda ordinal: (*facts["capability"], 132, 232448))

    monkeypatch.setattr(device, "EMULATOR", None)
    monkeypatch.setattr(device, "built", lambda: facts["built"])
    monkeypatch.setattr(device.native, "why_absent", lambda: None)
    monkeypatch.setattr(device.native, "extension", Extension)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: facts["device"])
    device._driver_lacks.cache_clear()
    device._facts.cache_clear()


@pytest.fixture
def forgotten():
    """What was found out about the machine is found out again after the test."""
    yield
    device._driver_lacks.cache_clear()
    device._facts.cache_clear()


NOT_BUILT = build_facts.Built(frozenset(), None, (), None, "nvcc is not on PATH; install CUDA 12.8")
SENTENCES = {
    "the CUDA kernels were not built: nvcc is not on PATH; install CUDA 12.8": {"built": NOT_BUILT},
    f"torch sees no CUDA device (the kernels are {TOLD})": {"device": False},
    "libcuda.so.1 could not be loaded (why)": {"driver": "libcuda.so.1 could not be loaded (why)"},
    "the driver (12.4) is older than the kernels (13.0); install a newer driver": {"version": 12040},
}


@pytest.mark.parametrize("sentence", SENTENCES)
def test_what_a_machine_lacks_is_a_sentence(monkeypatch, forgotten, sentence):
    on_a_gpu(monkeypatch, **SENTENCES[sentence])
    assert sk.backends()["cuda"] == sentence


def test_a_machine_that_lacks_nothing(monkeypatch, forgotten):
    on_a_gpu(monkeypatch)
    assert sk.backends()["cuda"] is None
    gpu = torch.device("cuda", 0)
    assert device.device_lacks(gpu) is None
    assert device.image_lacks("ddim_step") is None
    assert device.image_lacks("tail") == "the CUDA kernels of tail were not built: its fatbin is missing"
    untimed = "has not been timed on this kind of GPU"
    x = SimpleNamespace(device=gpu, ndim=4, shape=(1, 48, 16, 16))
    assert device.why_slower("ddim_step", x, None) == f"{untimed}; ask for it by name"
    monkeypatch.setattr(device, "TIMED", {("gated_ffn", 9, 0): frozenset({device.Size(48)})})
    assert device.why_slower("gated_ffn", x, device.Size(48)) is None
    assert device.why_slower("gated_ffn", x, device.Size(96)) == f"{untimed} with 96 channels; ask for it by name"


@pytest.mark.parametrize(("heads", "window", "reason"), [(1, 16, None), (2, 16, "heads of 12"), (1, 8, "windows of 8")])
def test_only_what_was_timed_is_taken_automatically(monkeypatch, forgotten, heads, window, reason):
    on_a_gpu(monkeypatch)
    x = SimpleNamespace(device=torch.device("cuda", 0), shape=(1, 48, 16, 16), requires_grad=False)
    weights = attention_weights(48, heads, window)
    ffn = ffn_weights(48, 63)

    def slower():
        given = {"swda_attention": (x, weights), "swda_block": (x, weights, ffn)}
        return [getattr(sk, op).op.slower["cuda"](*arguments, window, 0) for op, arguments in given.items()]

    assert all(told is None if reason is None else reason in told for told in slower())
    x.requires_grad = True
    assert all("with gradients" in told for told in slower())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    with torch.no_grad():
        assert all("under autocast" in told for told in slower())


def test_the_self_check_runs_every_instance_that_is_taken_automatically():
    for op in {name for name, _, _ in device.TIMED}:
        sizes = set()
        for case in (selfcheck.CASES[op], *selfcheck.OTHER_INSTANCES[op, "cuda"]):
            x, weights, *rest = case.arguments()[0]
            window = rest[-2]
            sizes.add(device.Size(x.shape[1], x.shape[1] // 2 // weights.logit_scale.shape[0], window))
        assert sizes >= set().union(*(timed for (name, *_), timed in device.TIMED.items() if name == op))


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((7, 5), False),
        ((8, 0), True),
        ((8, 9), True),
        ((9, 0), True),
        ((10, 3), True),
        ((11, 0), True),
        ((12, 1), True),
    ],
)
def test_compute_capabilities(monkeypatch, forgotten, capability, runs):
    on_a_gpu(monkeypatch, capability=capability)
    reason = device.device_lacks(torch.device("cuda", 0))
    assert (reason is None) == runs
    if reason:
        assert reason == "no kernel for compute capability 7.5; built for 8.x, 9.0, 10.x, 12.x and newer ones"


def test_the_note_of_a_build(tmp_path):
    (tmp_path / "tail.fatbin").touch()
    (tmp_path / "built.txt").write_text("nvcc 12.4\narchitectures 80 90 ptx90\nerror `nvcc` failed: no\n")
    read = build_facts.built.__wrapped__
    assert read(tmp_path) == build_facts.Built(frozenset({"tail"}), (12, 4), (80, 90), 90, "`nvcc` failed: no")
    assert read(tmp_path / "nowhere").why_absent == "this installation was made without them"


@pytest.mark.parametrize("op", ["ddim_step", "group_norm_silu", "norm_silu_conv3x3", "gated_ffn"])
def test_compiled_code_takes_the_kernels_by_name(where, op):
    given = {
        "ddim_step": lambda: (latent(), latent()),
        "group_norm_silu": lambda: (in_rows(torch.randn(2, 16, 3, 4)), norm_weights(2, 16), 4),
        "norm_silu_conv3x3": lambda: convolution("one pixel"),
        "gated_ffn": lambda: (in_rows(torch.randn(1, 24, 3, 4)), ffn_weights(24, 63)),
    }[op]()
    given = moved(given, where, torch.bfloat16)
    keywords = {"alpha_bar_t": 0.25, "alpha_bar_s": 0.5} if op == "ddim_step" else {}
    function = getattr(sk, op)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *args: function(*args, **keywords), fullgraph=True, backend="aot_eager")
    plain = on("cuda", lambda *args: function(*args, **keywords), given)
    out = on("cuda", compiled, given)
    assert torch.equal(out, plain)
    assert out.stride() == plain.stride()


@pytest.mark.parametrize("op", ["ddim_step", "group_norm_silu", "norm_silu_conv3x3"])
def test_the_self_check_covers_the_kernels_and_the_gradient_that_goes_with_them(where, op):
    if sk.backends()["triton"] is not None:
        pytest.skip(sk.backends()["triton"])
    row = selfcheck.check(op, "cuda", torch.bfloat16, where)
    assert (row.forward, row.backward, row.not_served) == ("ok", "ok", None)
    declined = selfcheck.check(op, "cuda", torch.float32, where)
    assert declined.not_served == "the cuda backend takes bfloat16 and float16, found float32"


@pytest.mark.slow
@pytest.mark.parametrize("op", ["gated_ffn", "swda_attention", "swda_block"])
def test_the_self_check_covers_the_blocks_kernels(where, op):
    row = selfcheck.check(op, "cuda", torch.bfloat16, where)
    assert (row.forward, row.backward, row.not_served) == ("ok", "ok", None)


def test_a_whole_network_is_in_channels_last_all_the_way(where, monkeypatch):
    """On a GPU torch's PixelShuffle gives NCHW, which the kernels decline; here the network is told that it does."""
    config = NetworkConfig(
        in_channels=3, dim=24, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1, heads=(1, 2, 4, 8), window_size=8
    )
    shuffled = []
    monkeypatch.setattr(network, "_loses_rows", lambda x: shuffled.append(x.shape) or True)
    net = Swintormer(config).to(where, torch.bfloat16).to(memory_format=torch.channels_last).eval()
    x = in_rows(torch.rand(1, 3, 128, 128)).to(where, torch.bfloat16)
    out = on("cuda", net, (x,))
    assert len(shuffled) == 8  # into the network, three down, three up, and out
    assert_as_good(out, on("reference", net, (x,)), on("reference", net.double(), (x.double(),)))
