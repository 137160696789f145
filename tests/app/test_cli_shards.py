"""`--shard`: machines that see the same files share them out without speaking to each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_files import files, photo

from swintormer.cli.deblur import WHOLE, parse_shard
from swintormer.cli.plan import Job, shard_of
from swintormer.errors import SwintormerError

NAMES = ["b.png", "a.png", "d/e.png", "d/c.png", "z.png", "a.jpg", "Ä.png"]


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 9])
def test_every_picture_is_in_one_share_in_whatever_order_a_machine_lists_them(shards):
    jobs = [Job(Path(name), Path("out", name)) for name in NAMES]
    shares = [shard_of(jobs, number, shards) for number in range(1, shards + 1)]
    assert sorted(str(job.source) for share in shares for job in share) == sorted(NAMES)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    if shards > 1:
        assert shares == [shard_of(jobs[::-1], number, shards) for number in range(1, shards + 1)]


def test_two_machines_restore_a_folder_together(run):
    for name in ("a.png", "b.png", "deep/c.png", "d.jpg", "d.png"):
        photo(Path("in", name), side=(8, 8))
    run("deblur", "in", "-r", "-o", "whole", "--format", "png")
    first = run("deblur", "in", "-r", "-o", "out", "--format", "png", "--shard", "1/2")
    assert "Share 1 of 2 holds 3 of 5 pictures." in first.stdout
    assert files("out") == {"a.png", "d.jpg.png", "deep/c.png"}, "d.jpg and d.png share a name in all shares"
    second = run("deblur", "in", "-r", "-o", "out", "--format", "png", "--shard", "2/2", "--skip-existing")
    assert "already" not in second.stdout, "its share does not begin elsewhere because results are there"
    assert files("out") == files("whole")
    for name in files("out"):
        assert Path("out", name).read_bytes() == Path("whole", name).read_bytes()
    again = run("deblur", "in", "-r", "-o", "out", "--format", "png", "--shard", "1/2", "--skip-existing")
    assert "3 of 3 are restored already" in again.stdout


def test_a_share_may_be_empty(run):
    """A batch system starts as many jobs as it was told to; one without work has not failed."""
    photo("in/a.png", side=(8, 8))
    result = run("deblur", "in", "-o", "out", "--shard", "4/5")
    assert result.stdout == "Share 4 of 5 holds 0 of 1 pictures.\n"
    assert not Path("out").exists()


def test_what_is_no_share(run):
    assert (parse_shard(""), parse_shard("2/5"), parse_shard("1/1")) == (WHOLE, (2, 5), (1, 1))
    for text in ("0/5", "6/5", "2", "2/", "/5", "-1/5", "2/0", "1.5/2", "a/b"):
        with pytest.raises(SwintormerError, match="--shard takes a share and their number, from 1/5 to 5/5 for five"):
            parse_shard(text)
    photo("a.png", side=(8, 8))
    assert "--shard takes" in run("deblur", "a.png", "-o", "out", "--shard", "0/5", code=1).stderr
