"""`pytest bench/` times every op's cases(); `--record` appends the rows to bench/results/<op>.csv."""

from __future__ import annotations

import pytest
from measure import TABLE, Row, append_csv, format_table

ROWS = pytest.StashKey[list[Row]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="append the rows to bench/results/<op>.csv")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


@pytest.fixture
def rows(request: pytest.FixtureRequest) -> list[Row]:
    """Rows of this run; a bench appends its own."""
    return request.config.stash[ROWS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section("ops, timed in turn with the reference and with a copy of as many bytes; medians")
    terminalreporter.write(format_table(rows, TABLE))
    if config.getoption("--record"):
        for file in append_csv(rows):
            terminalreporter.write_line(f"appended to {file}")
