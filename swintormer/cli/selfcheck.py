"""What `swintormer selfcheck` prints: the versions, the device, and the table of `swintormer_kernels.selfcheck`."""

from __future__ import annotations

import typer

from swintormer.cli.messages import FAILED


def selfcheck() -> None:
    """Compare every op and backend of this machine with plain PyTorch, on this device."""
    text, passed = describe()
    print(text)
    if not passed:
        raise typer.Exit(FAILED)


def describe() -> tuple[str, bool]:
    """The whole text, and whether nothing failed."""
    import torch

    import swintormer_kernels as sk
    from swintormer_kernels import trust

    lines = [*trust.versions()]
    if torch.cuda.is_available():
        lines.insert(0, torch.cuda.get_device_name())
    report = sk.selfcheck()
    return "\n".join([", ".join(lines), "", str(report)]), not report.failures
