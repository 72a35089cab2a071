"""The figures of the record in words: their names, and how they are written."""

from collections.abc import Mapping

# What is told as a share of the examples; other figures are plain numbers.
SHARES: Mapping[str, str] = {
    "top1": "top-1",
    "top5": "top-5",
    "accuracy": "accuracy",
    "auc": "area under the ROC curve",
    "eer": "equal error rate",
}
# What stands in a line of the record beside the figures of the examples.
_BESIDE = {"step", "epoch", "split", "learning_rate", "images_per_second", "input_wait"}
_BESIDE |= {"examples", "compile_seconds"}


def title(name: str) -> str:
    """Returns what a figure is called.

    Example:
      >>> title("top1"), title("loss")
      ('top-1', 'loss')
    """
    return SHARES.get(name, name.replace("_", " "))


def written(name: str, value: float) -> str:
    """Returns a figure's value as people write it.

    Example:
      >>> written("top1", 0.25), written("loss", 1.5), written("loss", 123456)
      ('25.0%', '1.500', '1.235e+05')
    """
    if name in SHARES:
        return f"{100 * value:.1f}%"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


def told(record: Mapping[str, float]) -> list[str]:
    """Returns the names of a record's figures, the loss first.

    Example:
      >>> told({"step": 3, "examples": 128, "top1": 0.5, "loss": 2.0})
      ['loss', 'top1']
    """
    return sorted(record.keys() - _BESIDE, key=lambda name: (name != "loss", name))
