"""Runs every op of the cpu backend through an extension built with sanitizers: python run_checked.py EXTENSION.

The address sanitizer's library must be preloaded: tensors then lie in memory that it watches, and a step too far ends
the process. Values are checked elsewhere. It prints "ok" after each instruction set and then reads past a tensor's end
on purpose, which must end the process.
"""

import importlib.util
import sys

import torch
from torch.utils._pytree import tree_leaves

NAME = "swintormer_kernels._native"
OPS = (
    "ddim_step",
    "gated_ffn",
    "group_norm_silu",
    "norm_projection",
    "norm_silu_conv3x3",
    "res_block",
    "swda_attention",
    "swda_block",
    "upsample_conv3x3",
)
WITH_BACKWARD = ("gated_ffn", "group_norm_silu", "swda_attention", "swda_block")
MOST_NUMBERS = 60000
"""Of a case's tensors: the sanitizers make the rest slow, and add nothing to it."""


def load(path):
    """The extension at `path`, in place of the package's own."""
    spec = importlib.util.spec_from_file_location(NAME, path)
    sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[NAME])
    return sys.modules[NAME]


def run_ops():
    import swintormer_kernels as sk
    from swintormer_kernels.testing.cases import cases_of

    calls = 0
    for name in OPS:
        op = getattr(sk, name)
        for case in cases_of(name):
            args, kwargs = case.make(0)
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            if sum(tensor.numel() for tensor in tensors) > MOST_NUMBERS:
                continue
            calls += 1
            with sk.use_backend("cpu"):
                for threads in (1, 3):
                    torch.set_num_threads(threads)
                    op(*args, **kwargs)
                if name in WITH_BACKWARD:
                    for tensor in tensors:
                        tensor.requires_grad_()
                    op(*args, **kwargs).sum().backward()
    return calls


def read_past_the_end(extension):
    from swintormer_kernels.backends.cpu.layout import view

    x, out = torch.zeros(1000), torch.zeros(1000)
    coefficients = ("x0_from_z", "x0_from_pred", "out_from_x0", "out_from_z", "out_from_pred", "out_from_fresh")
    numbers = dict.fromkeys((*coefficients, "clip", "guidance"), 1.0)
    shorter = (x.data_ptr() + 64, x.shape, x.stride(), x)
    extension.ddim_step(out=view(out), z=shorter, pred=view(x), fresh=None, unconditional=None, threads=1, **numbers)


if __name__ == "__main__":
    extension = load(sys.argv[1])
    for isa in extension.supported_isas():
        extension.use_isa(isa)
        print(isa, run_ops(), "calls ok", flush=True)
    read_past_the_end(extension)
