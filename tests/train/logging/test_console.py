"""The display of a run: a bar on a terminal, and occasional lines elsewhere."""

import io

import pytest
from rich.console import Console

from train.logging import console as consoles
from train.logging.console import PLAIN_SECONDS, Reporter, describe_metrics

RECORD = {"loss": 1.2345, "top1": 0.5, "images_per_second": 12345.6, "epoch": 1.0}


def make(*, terminal: bool) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    options = {"width": 120, "soft_wrap": True, "legacy_windows": False}
    return Console(file=text, force_terminal=terminal, **options), text


@pytest.fixture
def clock(monkeypatch):
    """Returns a list whose number is the time."""
    now = [1000.0]
    monkeypatch.setattr(consoles.time, "monotonic", lambda: now[0])
    return now


def test_figures_in_words():
    assert describe_metrics(RECORD) == "loss 1.234  top-1 50.0%  12,346 images/s"
    assert describe_metrics({"loss": 0.5, "top1": 1.0}) == "loss 0.500  top-1 100.0%"


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.04, "25.0 s/image"), (1.6, "0.6 s/image"), (2.0, "2 images/s"), (0.0, "0")],
)
def test_a_slow_run_shows_the_time_of_an_image(rate, text):
    """Never 0 images/s, of which nobody can tell when the run ends."""
    assert describe_metrics({"images_per_second": rate}).startswith(text)


def test_without_a_terminal_there_is_a_line_now_and_then(clock):
    """The first, then one every so many seconds, and the last in any case."""
    console, text = make(terminal=False)
    with Reporter(100, 0, console) as reporter:
        for step in range(10, 101, 10):
            reporter.advance(step, RECORD)
            clock[0] += 0.4 * PLAIN_SECONDS
    words = "  loss 1.234  top-1 50.0%  12,346 images/s"
    steps = [10, 40, 70, 100]
    assert text.getvalue().splitlines() == [f"step {s}/100{words}" for s in steps]


def test_the_last_line_is_never_left_out(clock):
    console, text = make(terminal=False)
    with Reporter(20, 10, console) as reporter:
        reporter.advance(15, RECORD)
        reporter.advance(18, RECORD)
        reporter.advance(20, RECORD)
    assert [line.split()[1] for line in text.getvalue().splitlines()] == [
        "15/20",
        "20/20",
    ]


def test_on_a_terminal_there_is_a_bar():
    console, text = make(terminal=True)
    with Reporter(20, 5, console) as reporter:
        assert "5/20" in text.getvalue()  # what was done before it was resumed
        reporter.advance(12, RECORD)
        reporter.message("epoch 3.0  validation loss 2.000")
        reporter.advance(20, RECORD)
    shown = text.getvalue()
    for part in ("20/20", "━━━", "loss 1.234  top-1 50.0%", "left"):
        assert part in shown
    assert "epoch 3.0  validation loss 2.000" in shown
    assert "step 20/20  loss" not in shown  # the line that is there without one


def test_what_stays_is_printed_as_it_is():
    """Also square brackets, which the console could take for its own markup."""
    console, text = make(terminal=False)
    with Reporter(20, 0, console) as reporter:
        reporter.message("resuming runs/[red]a[/red] at step 1,000")
    assert text.getvalue() == "resuming runs/[red]a[/red] at step 1,000\n"


def test_the_terminal_is_given_back_after_an_error():
    console, text = make(terminal=True)
    with pytest.raises(ValueError, match="stop"), Reporter(20, 0, console):
        raise ValueError("stop")
    shown = text.getvalue()
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")  # the cursor is shown
