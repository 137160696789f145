"""Cases of every op, for tests and benches."""

from __future__ import annotations

from swintormer_kernels.testing import block_cases, denoiser_cases
from swintormer_kernels.testing.case import Case

CASES = {
    "swda_attention": block_cases.swda_attention_cases,
    "gated_ffn": block_cases.gated_ffn_cases,
    "swda_block": block_cases.swda_block_cases,
    "group_norm_silu": denoiser_cases.group_norm_silu_cases,
    "norm_silu_conv3x3": denoiser_cases.norm_silu_conv3x3_cases,
    "res_block": denoiser_cases.res_block_cases,
    "norm_projection": denoiser_cases.norm_projection_cases,
    "conv3x3_shuffle": denoiser_cases.conv3x3_shuffle_cases,
    "upsample_conv3x3": denoiser_cases.upsample_conv3x3_cases,
    "ddim_step": denoiser_cases.ddim_step_cases,
}


def cases_of(name: str) -> list[Case]:
    """Inputs worth running of the op of this name, such as "swda_block".

    Raises:
        KeyError: there is no such op.
    """
    return CASES[name]()


def case_of(op: str, name: str) -> Case:
    """The case of this op and name.

    Raises:
        KeyError: there is no such op or case.
    """
    return {case.name: case for case in cases_of(op)}[name]
