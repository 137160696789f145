"""`pytest bench/` times every op's cases; `--record` appends rows and sentences to bench/results."""

from __future__ import annotations

import pytest

from bench.measure import TABLE, Row, append_csv, append_notes, format_table, rates

ROWS = pytest.StashKey[list[Row]]()
NOTES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="append rows and notes to bench/results")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS], config.stash[NOTES] = [], []


@pytest.fixture
def rows(request: pytest.FixtureRequest) -> list[Row]:
    """Rows of this run; a bench appends its own."""
    return request.config.stash[ROWS]


@pytest.fixture
def notes(request: pytest.FixtureRequest) -> list[str]:
    """Sentences with what fits in no row; a bench appends its own."""
    return request.config.stash[NOTES]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows, notes = config.stash[ROWS], config.stash[NOTES]
    if rows:
        terminalreporter.section("ops, timed in turn with the reference and with a copy of as many bytes; medians")
        terminalreporter.write(format_table(rows, TABLE))
        terminalreporter.write_line(rates())
    for note in notes:
        terminalreporter.write_line(note)
    if config.getoption("--record"):
        for file in [*append_csv(rows), *append_notes(notes)]:
            terminalreporter.write_line(f"appended to {file}")
