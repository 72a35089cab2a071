"""The options of training face networks."""

import dataclasses
from typing import Literal

from train.options import PATH, option


@dataclasses.dataclass(frozen=True)
class Faces:
    """Face networks: the loss, and the pairs of the test."""

    loss: Literal["arcface", "softmax_center"] = "arcface"
    """ArcFace, or softmax cross-entropy with center loss."""
    margin: float = option(0.5, low=0, high=1.5)
    """Angle in radians that is added to that of the own identity (arcface)."""
    scale: float = option(64.0, above=0)
    """Factor of the cosines (arcface)."""
    center_weight: float = option(0.003, low=0)
    """Weight of the center loss (softmax_center)."""
    center_rate: float = option(0.5, low=0, high=1)
    """Share of the way that a center moves towards its embeddings (softmax_center)."""
    pairs: str | None = option(None, path=PATH)
    """File of pairs in LFW's format, for the test. Its people are not trained on."""
    images: str | None = option(None, path=PATH)
    """Folder of the images of the pairs, with one folder for each person."""
    folds: tuple[int, ...] = option((), low=1)
    """Folds of the pairs, from 1, to test; only their people are not trained on."""
    min_images: int = option(1, low=1)
    """Least number of images of a person who is trained on."""
