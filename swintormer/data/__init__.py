"""Training pairs."""

from swintormer.data.synthetic import SyntheticPairs

__all__ = ["SyntheticPairs"]
