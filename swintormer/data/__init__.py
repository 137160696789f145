"""Training pairs."""

from swintormer.data.config import DataConfig
from swintormer.data.datasets import PairFiles, read_pairs
from swintormer.data.mixture import Source, make_source
from swintormer.data.synthetic import SyntheticPairs

__all__ = ["DataConfig", "PairFiles", "Source", "SyntheticPairs", "make_source", "read_pairs"]
