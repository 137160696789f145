"""Where training pairs come from, as data: the table `[data]` of a training configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from swintormer.data.datasets import Layout, Split
from swintormer.data.degrade import Recipe


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str | Path | dict) else value


def _home(value: Any) -> Any:
    return Path(value).expanduser() if isinstance(value, str | Path) else value


Folder = Annotated[Path, BeforeValidator(_home)]


class PairsConfig(BaseModel):
    """One dataset of pairs.

    Attributes:
        layout, root, split: as `datasets.read_pairs` takes them.
        share: weight of its pairs in the mixture.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: Layout
    root: Folder
    split: Split = "train"
    share: float = Field(1.0, gt=0, allow_inf_nan=False)


class DataConfig(BaseModel):
    """A mixture of sources. The default is generated scenes alone, with the "simple" degradation.

    Shares are weights: a source gets its share over the sum of all.

    Attributes:
        scenes: share of generated scenes (scenes.py); None for 1 without another source and 0 beside one.
        walls: share of generated walls (walls.py), each of bricks, tiles or planks with joints soft by nature.
        photos: folders of sharp photographs, nested or not. photos_share: their share together.
        soft: share of the windows of photographs that are made soft before they are blurred (photos.py). More of them
            keep the network from sharpening what is soft by nature, and make it hesitate where pictures are blurred.
        pairs: datasets of blurred and sharp pictures.
        views: six channels, the two dual-pixel views, instead of three. It needs `degradation` "camera" or no other
            source than pairs.
        cache: folder of the decoded pictures; None for `cache.default_folder`.
        degradation: what blurs scenes, walls and photographs. "simple": `synthetic.simple_pair`, small kernels.
            "camera": `degrade`, blur as cameras make it.
        recipe: how often "camera" makes which fault, and how strong; None for `Recipe()`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scenes: float | None = Field(None, ge=0, allow_inf_nan=False)
    walls: float = Field(0.0, ge=0, allow_inf_nan=False)
    photos: Annotated[tuple[Folder, ...], BeforeValidator(_one_or_more)] = ()
    photos_share: float = Field(1.0, gt=0, allow_inf_nan=False)
    soft: float = Field(0.2, ge=0, le=1)
    pairs: Annotated[tuple[PairsConfig, ...], BeforeValidator(_one_or_more)] = ()
    views: bool = False
    cache: Folder | None = None
    degradation: Literal["simple", "camera"] = "simple"
    recipe: Recipe | None = None

    @property
    def scenes_share(self) -> float:
        if self.scenes is None:
            return 0.0 if self.photos or self.pairs or self.walls else 1.0
        return self.scenes

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if not (self.scenes_share or self.walls or self.photos or self.pairs):
            raise ValueError("there is no source of pairs: give scenes or walls a share, or name photos or pairs")
        if self.views and self.degradation == "simple" and (self.scenes_share or self.walls or self.photos):
            raise ValueError('the "simple" degradation makes no dual-pixel views: set degradation to "camera"')
        if self.recipe is not None and self.degradation == "simple":
            raise ValueError('`recipe` is for the "camera" degradation: set degradation to "camera", or leave it out')
        return self
