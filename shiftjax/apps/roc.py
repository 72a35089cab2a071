"""ROC curves of face networks: true accept rate against false accept rate."""

import functools
from collections.abc import Mapping

from shiftjax.apps.face_verification import Verification
from shiftjax.apps.figures import figure_class, save_plot

LEAST_RATE = 1e-3  # on the logarithmic axis


def draw_roc(found: Mapping[str, Verification], path: str) -> None:
    """Draws a ROC curve for each network, with logarithmic false accept rates.

    Args:
      found: result of `shiftjax.apps.face_verification.verify_pairs` for each network,
        by the name in the legend.
      path: file of the figure; its ending decides the format.

    Raises:
      InputError: if matplotlib is not installed, or the file cannot be written.
    """
    figure = figure_class()(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, result in found.items():
        axes.plot(
            100 * result.false_accept_rates,
            100 * result.true_accept_rates,
            drawstyle="steps-post",
            label=f"{name}: area {100 * result.auc:.1f}%",
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(100 * LEAST_RATE, 100)
    axes.set_ylim(0, 100)
    axes.set_xlabel("pairs of two people that are accepted, %")
    axes.set_ylabel("pairs of one person that are accepted, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    save_plot(functools.partial(figure.savefig, dpi=150), path)
