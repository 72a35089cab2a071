"""ShiftNet-A, B and C, the paper's ImageNet networks of CSC modules.

Wu et al. 2018 (https://arxiv.org/abs/1711.08141, section 4):

    stem     7x7, stride 2; no BatchNorm, no ReLU: a module begins with both
    stage1   CSC modules, the first with stride 2
    ..
    stage4
    head     BatchNorm, ReLU, mean over the pixels, dense

A module that changes the shape computes only the additional channels, and appends the
pooled input. ShiftNet-C is not described in as much detail: of the forms that its
modules could have, only one has its published number of parameters, in which such a
module computes all channels, and adds the pooled input.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax

from shiftjax.errors import InputError
from shiftjax.layers import CSC, SC2
from shiftjax.models.network import Features, Network
from shiftjax.module import Activations
from shiftjax.shift import positive


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage: modules of one width, the first of which halves the resolution.

    Attributes:
      features: number of output channels of each module.
      kernel_size: side K of the window of displacements.
      first: E of the first module, which has stride 2.
      others: E of the modules after it.
      count: number of modules after the first.

    Raises:
      InputError: if a size is not a positive integer, or the number is negative.
    """

    features: int
    kernel_size: int
    first: float
    others: float
    count: int

    def __post_init__(self) -> None:
        """Checks the integers; the modules check E."""
        positive("features", self.features)
        positive("kernel_size", self.kernel_size)
        if self.count != 0:
            positive("count", self.count)


STAGES_A = (
    Stage(64, 5, 4, 4, 4),
    Stage(128, 5, 4, 3, 5),
    Stage(256, 3, 3, 2, 6),
    Stage(512, 3, 2, 1, 2),
)
STAGES_B = tuple(
    dataclasses.replace(stage, features=stage.features // 2) for stage in STAGES_A
)
STAGES_C = (
    Stage(32, 5, 1, 1, 0),
    Stage(64, 5, 1, 1, 3),
    Stage(128, 3, 1, 1, 3),
    Stage(256, 3, 1, 1, 2),
)


class ShiftNet(Network):
    """A network of CSC or SC² modules.

    Attributes:
      stages: the stages, in order; or mappings of their fields, as JSON has them.
      stem_features: number of channels after the stem.
      num_classes: number of logits.
      dilation: distance between neighboring displacements, in pixels.
      second_shift: if True, the modules are SC², which begin with a shift; else CSC.
      shortcut: shortcut of modules that change the shape, "concat" or "add"; see `CSC`.

    Example:
      >>> from shiftjax import create_model
      >>> model = create_model("shiftnet_c", num_classes=10)
      >>> images = jax.ShapeDtypeStruct((2, 64, 64, 3), "float32")
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> logits, features = jax.eval_shape(
      ...     functools.partial(model.apply, capture_features=True), variables, images)
      >>> logits.shape, features["stage4"].shape
      ((2, 10), (2, 2, 2, 256))
    """

    stages: tuple[Stage | Mapping[str, Any], ...] = STAGES_A
    stem_features: int = 32
    num_classes: int = 1000
    dilation: int = 1
    second_shift: bool = False
    shortcut: str = "concat"

    image_size: ClassVar[int] = 224

    def __post_init__(self) -> None:
        """Makes the stages a tuple of `Stage`, by which equal networks are equal."""
        if not isinstance(self.stages, tuple | list):
            raise InputError(f"stages={self.stages!r}: it must be a tuple of stages")
        self.stages = tuple(map(_stage, self.stages))
        super().__post_init__()

    def trunk(self, images: jax.Array, train: bool) -> tuple[Activations, Features]:
        """Computes stem, stages, BatchNorm and ReLU.

        Args:
          images: `[batch, height, width, channels]`, normalized.
          train: if True, BatchNorm uses the statistics of the batch, and updates the
            running ones.

        Returns:
          The output, and the features of stem and stages by name.

        Raises:
          InputError: if the number of features of the stem is not a positive integer.
        """
        features: Features = {}
        x, chosen = self.enter(images, train)
        stem_features = positive("stem_features", self.stem_features)
        x = self.conv(stem_features, 7, 2, name="stem")(x)
        features["stem"] = x
        module = self.block(SC2 if self.second_shift else CSC)
        for number, stage in enumerate(self.stages, 1):
            assert isinstance(stage, Stage)
            for index in range(stage.count + 1):
                x = self.unit(
                    module,
                    stage.features,
                    stage.kernel_size,
                    1 if index else 2,
                    self.dilation,
                    stage.others if index else stage.first,
                    self.shortcut,
                    implementation=chosen,
                    name=f"stage{number}_block{index + 1:02}",
                )(x, train)
            features[f"stage{number}"] = x
        x = nn.relu(self.norm("norm", train)(x))
        return x, features


def _stage(given: Any) -> Stage:
    """Returns a stage, or raises InputError if the fields are not those of one."""
    if isinstance(given, Stage):
        return given
    fields = [field.name for field in dataclasses.fields(Stage)]
    if not isinstance(given, Mapping) or sorted(given) != sorted(fields):
        raise InputError(f"stages: {given!r} must have the fields {', '.join(fields)}")
    return Stage(**given)


VARIANTS: Mapping[str, functools.partial[ShiftNet]] = {
    "shiftnet_a": functools.partial(ShiftNet),
    "shiftnet_b": functools.partial(ShiftNet, stages=STAGES_B, stem_features=16),
    "shiftnet_c": functools.partial(
        ShiftNet, stages=STAGES_C, stem_features=16, shortcut="add"
    ),
}
