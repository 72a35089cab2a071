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
    """File with torchvision's weights of vgg16 or squeezenet, or SqueezeNet's .npz."""
    content_weight: float | None = option(None, low=0)
    """Weight of the content loss; by default chosen for the feature network."""
    style_weight: float | None = option(None, low=0)
    """Weight of the style loss; by default chosen for the feature network."""
    variation_weight: float | None = option(None, low=0)
    """Weight of the variation of neighboring pixels; by default chosen likewise."""
    content_layer: str | None = None
    """Layer of the content loss; by default that of the feature network."""
    style_layers: tuple[str, ...] = ()
    """Layers of the style loss; by default those of the feature network."""
    source: str = ""
    """Source of the painting, for the card of a release: artist, title, year."""
