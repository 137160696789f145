"""Faults of photographs as cameras make them: blur in linear light, noise, tone curve, JPEG."""

from swintormer.data.degrade.process import carry_out, degrade
from swintormer.data.degrade.recipe import MARGIN, Plan, Recipe

__all__ = ["MARGIN", "Plan", "Recipe", "carry_out", "degrade"]
