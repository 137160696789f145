"""Runs every op of the cpu backend under sanitizers: python run_checked.py EXTENSION address|thread.

EXTENSION is built with them, and the sanitizer's library must be preloaded. Tensors then lie in memory that it watches,
scratch and packed weights too, each ending where its data end. Values are checked elsewhere. It prints "ok" after each
instruction set and then does on purpose what the sanitizer forbids, which must end the process.
"""

import importlib.util
import sys
import threading

import torch
from torch.utils._pytree import tree_leaves, tree_map

NAME = "swintormer_kernels._native"
BLOCK_OPS = ("swda_attention", "gated_ffn", "swda_block")
MOST_NUMBERS = {"address": 60000, "thread": 400000}
"""Of a case's tensors: the sanitizers make the rest slow, and add nothing to it."""


def load(path):
    """The extension at `path`, in place of the package's own."""
    spec = importlib.util.spec_from_file_location(NAME, path)
    sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[NAME])
    return sys.modules[NAME]


class ExactScratch:
    """In place of `scratch.Scratch`: a tensor for each piece, so that a step past its end is seen."""

    def __init__(self, *floats):
        from swintormer_kernels.backends.cpu.layout import dense

        self.buffers = [dense(torch.empty(size)) for size in floats]


def with_gradients(args):
    return tree_map(lambda leaf: leaf.clone().requires_grad_() if isinstance(leaf, torch.Tensor) else leaf, args)


def run_in_bfloat16(op, args):
    """Products of bfloat16, by the instruction or emulated, and products of float32 on tensors of bfloat16."""
    from swintormer_kernels.precision import emulated_bfloat16

    halved = tree_map(lambda leaf: leaf.bfloat16() if isinstance(leaf, torch.Tensor) else leaf, args)
    op(*halved)
    with emulated_bfloat16():
        op(*halved)
        with torch.autocast("cpu", torch.bfloat16):
            op(*args)
            op(*with_gradients(args)).sum().backward()


def run_ops(most):
    import swintormer_kernels as sk
    from swintormer_kernels.backends.cpu import block_backward, denoiser
    from swintormer_kernels.testing.cases import CASES, cases_of

    block_backward.Scratch = denoiser.Scratch = ExactScratch
    calls = 0
    for name in CASES:
        op = getattr(sk, name)
        for case in cases_of(name):
            args, kwargs = case.make(0)
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            if sum(tensor.numel() for tensor in tensors) > most:
                continue
            calls += 1
            with sk.use_backend("cpu"):
                for threads in (1, 3):
                    torch.set_num_threads(threads)
                    op(*args, **kwargs)
                    if name in BLOCK_OPS:
                        run_in_bfloat16(op, args)
                if op.op.own_backward("cpu") is not None:
                    for tensor in tensors:
                        tensor.requires_grad_()
                    op(*args, **kwargs).sum().backward()
    return calls


def step(extension, out, z):
    """A step of 1000 numbers from one tensor to another."""
    coefficients = ("x0_from_z", "x0_from_pred", "out_from_x0", "out_from_z", "out_from_pred", "out_from_fresh")
    numbers = dict.fromkeys((*coefficients, "clip", "guidance"), 1.0)
    extension.ddim_step(out=out, z=z, pred=z, fresh=None, unconditional=None, threads=1, **numbers)


def read_past_the_end(extension):
    from swintormer_kernels.backends.cpu.layout import view

    x, out = torch.zeros(1000), torch.zeros(1000)
    step(extension, view(out), (x.data_ptr() + 64, x.shape, x.stride(), x))


def write_from_two_threads(extension):
    from swintormer_kernels.backends.cpu.layout import view

    x, out = torch.zeros(1000000), torch.zeros(1000000)
    writers = [threading.Thread(target=step, args=(extension, view(out), view(x))) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()


if __name__ == "__main__":
    path, kind = sys.argv[1:]
    extension = load(path)
    for isa in extension.supported_isas():
        extension.use_isa(isa)
        extension.use_own_threads(True)  # the OpenMP runtime is not built with sanitizers
        print(isa, run_ops(MOST_NUMBERS[kind]), "calls ok", flush=True)
    read_past_the_end(extension) if kind == "address" else write_from_two_threads(extension)
