"""Rows with their shares of what the device can do."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.gpu.calls import NAN
from bench.gpu.rows import Row, append
from bench.gpu.timing import clock_mhz, copy_rate, driver_version, matrix_rate

DTYPES = (torch.bfloat16, torch.float32)


class Meter:
    """Writes the rows of one part; the device's rates are measured first."""

    def __init__(self, part: str, out: Path, device: str, n: int = 8192) -> None:
        self.part, self.out, self.device = part, out, device
        n = n if device != "cpu" else 64
        self.rates = {dtype: matrix_rate(dtype, device, n) for dtype in DTYPES}
        self.copy = copy_rate(device, 2**28 if device != "cpu" else 2**16)
        for dtype, rate in self.rates.items():
            print(f"matrix product in {dtype}: {rate / 1e12:.1f} TFLOP/s")
        print(f"copy: {self.copy / 1e9:.0f} GB/s", flush=True)
        self.card = "CPU" if device == "cpu" else torch.cuda.get_device_name(device)
        self.driver = driver_version()

    def row(
        self,
        *,
        what: str,
        case: str,
        dtype: torch.dtype,
        by: str,
        ms: float,
        passes: str = "forward",
        launched: str = "plain",
        macs: float = NAN,
        moved: float = NAN,
        eager_ms: float = NAN,
        peak_mb: float = NAN,
        error: float = NAN,
    ) -> Row:
        """Write a line, with the rates and shares that follow; `macs` and `moved` (bytes) are those of the forward."""
        seconds, flops = 1e-3 * ms, 2 * macs * (3 if passes == "both" else 1)
        row = Row(
            part=self.part,
            what=what,
            case=case,
            dtype=str(dtype).removeprefix("torch."),
            passes=passes,
            by=by,
            launched=launched,
            ms=ms,
            ratio=eager_ms / ms,
            gmac=flops / 2e9,
            tflops=flops / seconds / 1e12,
            matmul_share=flops / seconds / self.rates[dtype],
            gb_s=moved / seconds / 1e9,
            copy_share=moved / seconds / self.copy,
            peak_mb=peak_mb,
            error=error,
            card=self.card,
            driver=self.driver,
            clock_mhz=clock_mhz() if self.device != "cpu" else NAN,
        )
        append(self.out, row)
        return row
