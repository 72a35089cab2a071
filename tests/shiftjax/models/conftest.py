"""Shapes of the features of a CIFAR network."""


def cifar_features(images, widths=(16, 32, 64)):
    """Shapes of the features: strides 2 round the size up."""
    batch, height, width, _ = images
    sizes = [(-(-height // stride), -(-width // stride)) for stride in (1, 2, 4)]
    stages = [(batch, *size, c) for size, c in zip(sizes, widths, strict=True)]
    names = ["stage1", "stage2", "stage3", "pre_logits", "stem"]
    return dict(zip(names, [*stages, (batch, widths[2]), stages[0]], strict=True))
