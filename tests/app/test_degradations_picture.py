"""The picture of one photograph in sixteen degradations."""

import numpy as np
import pytest

from bench import degradations
from swintormer.data.degrade import Recipe


@pytest.mark.usefixtures("one_thread")
def test_sixteen_labelled_degradations_of_one_photograph():
    shown = dict(degradations.tiles(40, 48))
    assert len(shown) == 16
    assert len({tile.tobytes() for tile in shown.values()}) == 16
    for label, tile in shown.items():
        assert tile.shape == (40, 48, 3)
        assert tile.min() >= 0, label
        assert tile.max() <= 1, label
        assert tile.std() > 0.05, label
    sharp = next(iter(shown.values()))
    blurred = shown["disc 10, left half"]
    assert np.abs(np.diff(blurred, axis=0)).mean() < np.abs(np.diff(sharp, axis=0)).mean()


@pytest.mark.usefixtures("one_thread")
def test_times_are_of_the_processor():
    assert degradations.milliseconds(Recipe(), views=True, pairs=8, crop=16) > 0
