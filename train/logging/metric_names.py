"""The display of metrics: their names and the text of their values."""

from collections.abc import Mapping

# Metrics that are displayed as a share of the examples; others are plain numbers.
SHARES: Mapping[str, str] = {
    "top1": "top-1",
    "top5": "top-5",
    "accuracy": "accuracy",
    "auc": "area under the ROC curve",
    "eer": "equal error rate",
    "accuracy_standard_error": "standard error of the accuracy",
    "tar_at_far_0.01": "TAR at FAR 0.01",
    "tar_at_far_0.001": "TAR at FAR 0.001",
}
# Entries of a record that are not metrics of the examples.
_OTHERS = {"step", "epoch", "split", "learning_rate", "images_per_second", "input_wait"}
_OTHERS |= {"examples", "pairs", "compile_seconds"}
# Before the number of a fold, at the end of the name of its metric.
FOLD = "_fold_"


def title(name: str) -> str:
    """Returns the displayed name of a metric.

    Example:
      >>> title("top1"), title("loss")
      ('top-1', 'loss')
    """
    return SHARES.get(name, name.replace("_", " "))


def text(name: str, value: float) -> str:
    """Returns the value of a metric as text.

    Example:
      >>> text("top1", 0.25), text("loss", 1.5), text("loss", 123456)
      ('25.0%', '1.500', '1.235e+05')
    """
    if name in SHARES:
        return f"{100 * value:.1f}%"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


def displayed(record: Mapping[str, float]) -> list[str]:
    """Returns the names of the metrics of a record, the loss first, without folds.

    Example:
      >>> displayed({"step": 3, "examples": 128, "top1": 0.5, "loss": 2.0})
      ['loss', 'top1']
    """
    names = [name for name in record.keys() - _OTHERS if FOLD not in name]
    return sorted(names, key=lambda name: (name != "loss", name))
