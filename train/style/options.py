"""The options of style transfer."""

import dataclasses

from train.options import PATH, WEIGHTS, option


@dataclasses.dataclass(frozen=True)
class Style:
    """Style transfer: the painting, and the features that define the losses."""

    image: str | None = option(None, path=PATH)
    """File of the painting whose style is learned."""
    size: int = option(256, low=1)
    """Height and width that the painting is resized to."""
    features: str = option("vgg16", path=WEIGHTS)
    """Network whose features are compared: vgg16, squeezenet, or released weights."""
    weights: str | None = option(None, path=PATH)
    """File with torchvision's weights of vgg16 or squeezenet."""
    content_weight: float = option(1e5, low=0)
    """Weight of the content loss."""
    style_weight: float = option(1e10, low=0)
    """Weight of the style loss."""
