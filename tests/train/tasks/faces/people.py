"""Images of people that do not exist."""

import numpy as np
from PIL import Image

SIZE, PEOPLE, IMAGES, FEATURES = 16, 8, 8, 8
NAMES = tuple(f"P{i}" for i in range(PEOPLE))
TESTED = ("T0", "T1", "T2", "T3")  # of the pairs


def draw(folder, name: str, person: int, rng: np.random.Generator) -> None:
    """Writes images of a person: a pattern of colors, with noise."""
    (folder / name).mkdir(parents=True)
    colors = np.random.default_rng(person).integers(40, 216, (4, 4, 3))
    for number in range(1, IMAGES + 1):
        pixels = colors.repeat(SIZE // 4, 0).repeat(SIZE // 4, 1)
        pixels = pixels + rng.integers(-30, 31, pixels.shape)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / name / f"{name}_{number:04}.png")
