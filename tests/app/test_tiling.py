"""The tile grid: the paper's origins, full cover, weights that add up to one."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swintormer.errors import SwintormerError
from swintormer.execution.tiling import Axis, Blend, default_stride, make_grid

BLENDS = get_args(Blend)
EPS = np.finfo(np.float32).eps


def test_the_papers_grid_over_1680x1120() -> None:
    grid = make_grid(1120, 1680, tile=256, stride=220)
    assert len(grid) == 40
    assert grid.rows.origins == (0, 220, 440, 660, 864)
    assert grid.columns.origins == (0, 220, 440, 660, 880, 1100, 1320, 1424)
    tiles = list(grid)
    assert tiles[:2] == [(0, 0), (0, 1)]
    assert grid.origin(*tiles[-1]) == (864, 1424)


def test_origins_are_the_releases_at_300x410() -> None:
    grid = make_grid(300, 410, tile=128, stride=110)
    assert [grid.origin(*tile) for tile in grid][:5] == [(0, 0), (0, 110), (0, 220), (0, 282), (110, 0)]
    assert grid.rows.origins == (0, 110, 172)


@pytest.mark.parametrize(("tile", "stride"), [(256, 220), (128, 110), (512, 476), (1024, 988), (2, 2), (1, 1)])
def test_default_stride(tile: int, stride: int) -> None:
    assert default_stride(tile) == stride


@pytest.mark.parametrize("blend", BLENDS)
def test_image_smaller_than_a_tile_is_one_tile_of_weight_one(blend: Blend) -> None:
    grid = make_grid(7, 300, tile=256, stride=220, blend=blend)
    assert grid.rows.origins == (0,)
    assert grid.rows.tile == 7
    assert grid.columns.origins == (0, 44)
    assert np.array_equal(grid.rows.weights, np.ones((1, 7)))


def _sum_of_weights(axis: Axis) -> np.ndarray:
    total = np.zeros(axis.length)
    for origin, weights in zip(axis.origins, axis.weights, strict=True):
        total[origin : origin + axis.tile] += weights
    return total


@given(
    length=st.integers(1, 400),
    tile=st.integers(1, 130),
    share=st.floats(0.05, 1),
    blend=st.sampled_from(BLENDS),
)
def test_weights_add_up_to_one(length: int, tile: int, share: float, blend: Blend) -> None:
    axis = make_grid(1, length, tile, max(1, int(tile * share)), blend).columns
    assert (axis.weights > 0).all()
    cover = int(np.bincount(np.concatenate([o + np.arange(axis.tile) for o in axis.origins])).max())
    # Each weight was rounded once to float32, and is at most one.
    np.testing.assert_allclose(_sum_of_weights(axis), 1, rtol=0, atol=cover * EPS)


@given(length=st.integers(1, 400), tile=st.integers(1, 130), share=st.floats(0.05, 1))
def test_tiles_cover_the_image_and_end_at_its_edge(length: int, tile: int, share: float) -> None:
    stride = max(1, int(tile * share))
    axis = make_grid(length, 1, tile, stride).rows
    assert axis.origins[0] == 0
    assert axis.origins[-1] + axis.tile == length
    steps = [b - a for a, b in pairwise(axis.origins)]
    assert all(step == stride for step in steps[:-1])
    assert all(0 < step <= stride for step in steps[-1:])
    assert sum(axis.finished(i) for i in range(len(axis.origins))) == length


def test_feather_keeps_full_weight_at_the_image_border_and_fades_at_tile_borders() -> None:
    axis = make_grid(1, 476, tile=256, stride=220, blend="feather").columns
    first, second = axis.weights
    assert (first[:220] == 1).all()
    assert (second[36:] == 1).all()
    assert (np.diff(second[:36]) > 0).all()
    np.testing.assert_array_equal(first[220:], second[:36][::-1])
    # The ramp's first sample, half a pixel of 36 into a quarter of the sine's period.
    np.testing.assert_allclose(second[0], np.sin(np.pi / 2 * 0.5 / 36) ** 2, rtol=2 * EPS)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0, 5, 8, 8, "uniform"), "5x0"),
        ((5, 5, 0, 1, "uniform"), "tile"),
        ((5, 5, 8, 9, "uniform"), "stride"),
        ((5, 5, 8, 0, "uniform"), "stride"),
        ((5, 5, 8, 8, "gaussian"), "gaussian"),
    ],
)
def test_bad_sizes_are_one_sentence(arguments: tuple, named: str) -> None:
    with pytest.raises(SwintormerError, match=named) as error:
        make_grid(*arguments)
    assert "\n" not in str(error.value)
