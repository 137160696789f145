"""What the CUDA kernels were predicted to take, written down before any ran on a GPU (docs/cuda.md has the model)."""

from __future__ import annotations

PREDICTED: dict[tuple[str, str], tuple[float, float]] = {
    # An H100 SXM at 1.7 GHz, bfloat16, 40 tiles of 256, as a graph. Least and most milliseconds.
    ("swda_block", "level1, C 48, shifted"): (0.22, 0.22),
    ("swda_block", "decoder_level1, C 96, shifted"): (0.60, 0.60),
    ("swda_block", "level2, C 96, shifted"): (0.18, 0.18),
    ("swda_block", "level3, C 192, shifted"): (0.17, 0.17),
    ("swda_block", "latent, C 384, shifted"): (0.18, 0.18),
    ("swda_attention", "level1, C 48, shifted"): (0.14, 0.14),  # of the first kernel; the projection adds a little
    ("gated_ffn", "level1, C 48, shifted"): (0.07, 0.07),
    ("gated_ffn", "decoder_level1, C 96, shifted"): (0.22, 0.22),
    ("gated_ffn", "level2, C 96, shifted"): (0.06, 0.06),
    ("gated_ffn", "level3, C 192, shifted"): (0.07, 0.07),
    ("gated_ffn", "latent, C 384, shifted"): (0.09, 0.09),
    ("released", "40 tiles of 256"): (7.0, 8.0),  # 9.5 to 11 by the instructions of the kernels as they became
    # One latent.
    ("norm_silu_conv3x3", "160 to 160, 128x128"): (0.018, 0.018),
    ("norm_silu_conv3x3", "320 to 320, 64x64"): (0.014, 0.014),
    ("norm_silu_conv3x3", "640 to 640, 16x16"): (0.020, 0.020),
    ("group_norm_silu", "160x128x128, channels_last"): (0.012, 0.012),
    ("ddim_step", "100 MP image 4x1024x1536, eta 1, clip"): (0.016, 0.016),
}
"""(what, case) of a row by CUDA, bfloat16, forward -> milliseconds."""


def predicted(what: str, case: str) -> str:
    """ "0.22", "7 to 8" or "-"."""
    least, most = PREDICTED.get((what, case), (0.0, 0.0))
    if not most:
        return "-"
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"
