"""The record of a run: each step once, whatever happens, and a picture of it."""

import json
import math
import os
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from shiftjax.errors import InputError, MissingFileError
from tests.train.checkpoint_states import run_python
from train.logging.records import MetricsWriter, plot_curves, read_metrics

ROOT = Path(__file__).parents[3]


def write_steps(
    workdir: Path, steps, resume_step: int | None = None, **options
) -> None:
    with MetricsWriter(workdir, resume_step=resume_step, **options) as writer:
        for step in steps:
            writer.write({"step": step, "split": "train", "loss": 1 / (1 + step)})


def steps_of(workdir: Path) -> list[int]:
    return [line["step"] for line in read_metrics(workdir)]


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_lines_are_strict_json_with_what_was_given(tmp_path):
    record = {
        "step": np.int64(3),
        "epoch": 0.5,
        "split": "train",
        "loss": jnp.float32(0.25),
        "top1": float("nan"),
        "learning_rate": np.float32("inf"),
        "count": jnp.int32(512),
    }
    with MetricsWriter(tmp_path / "new" / "run", resume_step=None) as writer:
        writer.write(record)
        text = (tmp_path / "new" / "run" / "metrics.jsonl").read_text()  # while open
    assert text.count("\n") == 1
    plain = {"step": 3, "epoch": 0.5, "split": "train", "loss": 0.25, "count": 512}
    written = json.loads(text, parse_constant=refuse)
    assert written == plain | {"top1": None, "learning_rate": None}
    assert list(written) == list(record)
    (line,) = read_metrics(tmp_path / "new" / "run")
    assert math.isnan(line.pop("top1"))
    assert math.isnan(line.pop("learning_rate"))
    assert line == plain


@pytest.mark.parametrize(
    ("resume_step", "kept"),
    [(None, []), (0, [0]), (20, [0, 10, 20]), (25, [0, 10, 20]), (99, [0, 10, 20, 30])],
)
def test_a_resumed_run_has_each_step_once(tmp_path, resume_step, kept):
    write_steps(tmp_path, [0, 10, 20, 30], log_to=())
    write_steps(tmp_path, [100], resume_step, log_to=())
    assert steps_of(tmp_path) == [*kept, 100]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("end", ['{"step": 4, "los', "{", '"', "\0\0\0", '{"loss": 1}'])
def test_a_half_written_last_line_is_dropped(tmp_path, end):
    write_steps(tmp_path, [1, 2], log_to=())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(end)
    assert steps_of(tmp_path) == [1, 2]
    write_steps(tmp_path, [3], 2, log_to=())
    assert steps_of(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize(
    "broken",
    [
        b'{"step": 2, "spl{"step": 3}',
        b"\0\xff\xfe",
        b"",
        b"[2]",
        b'{"step": 2}',
        b'{"step": Infinity, "split": "train"}',
    ],
    ids=["cut", "garbled", "empty", "list", "no split", "no number"],
)
def test_a_broken_line_is_skipped_with_one_warning(tmp_path, caplog, broken):
    """And the run goes on without it."""
    write_steps(tmp_path, [1, 2, 3], log_to=())
    path = tmp_path / "metrics.jsonl"
    one, _, three = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([one, broken, three, b""]))
    assert steps_of(tmp_path) == steps_of(tmp_path) == [1, 3]
    (warning,) = caplog.messages
    assert warning.startswith(f"line 2 of {path} is skipped: ")
    write_steps(tmp_path, [4], 3, log_to=())
    first, second, _ = path.read_bytes().splitlines()
    assert (first, second) == (one, three)
    assert steps_of(tmp_path) == [1, 3, 4]
    assert len(caplog.messages) == 1


def test_dropping_lines_is_all_or_nothing(tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    write_steps(tmp_path, [1, 2, 3], log_to=())
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            MetricsWriter(tmp_path, resume_step=1)
    assert steps_of(tmp_path) == [1, 2, 3]


WRITE_FOR_EVER = """
import itertools, sys
from train.logging.records import MetricsWriter, read_metrics

start = int(sys.argv[2])
with MetricsWriter(sys.argv[1], resume_step=start, log_to=()) as writer:
    for step in itertools.count(start + 1):
        writer.write({"step": step, "split": "train", "note": "x" * 5000})
        print(step, flush=True)
"""


def test_a_killed_run_loses_no_line(tmp_path):
    start = 0
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path), str(start)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        reported = 0
        for _ in range(50):
            reported = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].split("\n")[:-1]
        reported = max([reported, *map(int, rest)])
        steps = steps_of(tmp_path)
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) >= reported
        start = reported - 7  # as if the last checkpoint were some steps back


# --- TensorBoard --------------------------------------------------------------------


def read_events(path: Path) -> list:
    """Reads an event file by its format: length, checksum, message, checksum."""
    data, events = path.read_bytes(), []
    while data:
        (size,) = struct.unpack_from("<Q", data)
        events.append(event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return events


def scalars(path: Path) -> list[tuple[int, str, float]]:
    return [
        (event.step, value.tag, value.simple_value)
        for event in read_events(path)
        for value in event.summary.value
    ]


def test_events_say_the_same_and_hide_what_a_resumed_run_drops(tmp_path):
    with MetricsWriter(tmp_path, resume_step=None) as writer:
        writer.write({"step": 1, "epoch": 0.1, "split": "train", "loss": 2.0})
        writer.write({"step": 2, "split": "validation", "top1": 0.5, "loss": math.nan})
    (first,) = (tmp_path / "tensorboard").iterdir()
    assert scalars(first) == [(1, "train/loss", 2.0), (2, "validation/top1", 0.5)]
    with MetricsWriter(tmp_path, resume_step=1) as writer:
        writer.write({"step": 2, "split": "train", "loss": 1.0})
    (second,) = set((tmp_path / "tensorboard").iterdir()) - {first}
    starts = [e.step for e in read_events(second) if e.HasField("session_log")]
    assert starts == [2]  # TensorBoard drops this step and later ones of older files


# --- what the file system does ------------------------------------------------------

FULL_DISK = """
import resource, sys
from shiftjax.errors import InputError
from train.logging.records import MetricsWriter

numbers = {f"metric{i}": 0.5 for i in range(8)}
try:
    with MetricsWriter(sys.argv[1], resume_step=None) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
        for step in range(20):
            writer.write({"step": step, "split": "train"} | numbers)
except InputError as error:
    print(error)
"""


def test_a_disk_that_takes_no_more_events_ends_the_run(tmp_path):
    """The events reach the limit before the lines do."""
    process = run_python(FULL_DISK, tmp_path)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    wanted = f"cannot write {tmp_path}/metrics.jsonl: File too large\n"
    assert (process.returncode, out) == (0, wanted), err
    assert "Traceback" not in err
    assert (tmp_path / "metrics.jsonl").stat().st_size < 4000


def test_a_workdir_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/x")):
        with pytest.raises(InputError, match=f"cannot write {workdir}"):
            MetricsWriter(workdir, resume_step=None)
    with pytest.raises(MissingFileError, match=r"no metrics\.jsonl in .*nowhere"):
        read_metrics(tmp_path / "nowhere")
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match="cannot read"):
        read_metrics(tmp_path)


def test_a_full_disk(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MetricsWriter(tmp_path, resume_step=None, log_to=()) as writer:
        writer.write({"step": 1, "split": "train"})
        size = (tmp_path / "metrics.jsonl").stat().st_size
        for limit in (size + 5, size):  # a part of the line fits, or nothing
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                with pytest.raises(
                    InputError, match=r"cannot write .*metrics\.jsonl: "
                ):
                    writer.write({"step": 2, "split": "train"})
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert steps_of(tmp_path) == [1]


# --- the picture --------------------------------------------------------------------


def write_run(workdir: Path) -> None:
    with MetricsWriter(workdir, resume_step=None, log_to=()) as writer:
        for epoch in range(1, 6):
            shared = {"step": 10 * epoch, "epoch": epoch}
            loss = 2 / epoch if epoch != 3 else math.nan
            writer.write(
                shared | {"split": "train", "loss": loss, "learning_rate": 0.1 / epoch}
            )
            writer.write(
                shared | {"split": "validation", "loss": loss + 0.1, "top1": 0.5}
            )


def has_colour(picture: np.ndarray, colour: str) -> bool:
    wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return bool((np.abs(picture[..., :3] - wanted).max(axis=-1) < 0.02).any())


def test_curves_show_the_splits_there_are(tmp_path):
    write_run(tmp_path / "my_run")
    plot_curves(tmp_path / "my_run", tmp_path / "curves.png")
    picture = matplotlib.image.imread(tmp_path / "curves.png")
    assert min(picture.shape[:2]) > 600
    assert has_colour(picture, "#0072B2")  # train
    assert has_colour(picture, "#D55E00")  # validation
    assert not has_colour(picture, "#009E73")  # test
    plot_curves(tmp_path / "my_run", tmp_path / "curves.svg")
    text = (tmp_path / "curves.svg").read_text()
    for word in ("my_run", "loss", "top-1", "learning rate", "epoch"):
        assert f"<!-- {word} -->" in text
    for word in ("train 0.400", "validation 0.500", "validation 50.0%"):
        assert f"<!-- {word} -->" in text


def test_curves_leave_matplotlib_alone(tmp_path):
    write_run(tmp_path)
    code = (
        "import sys\n"
        "from train.logging.records import plot_curves\n"
        "plot_curves(sys.argv[1], sys.argv[1] + '/c.png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


def test_curves_that_cannot_be_drawn(tmp_path):
    with pytest.raises(MissingFileError):
        plot_curves(tmp_path, tmp_path / "curves.png")
    write_steps(tmp_path, [1], log_to=())  # without an epoch
    with pytest.raises(InputError, match="no loss or top1"):
        plot_curves(tmp_path, tmp_path / "curves.png")
    write_run(tmp_path)
    for name in ("curves.xyz", "absent/curves.png"):
        with pytest.raises(InputError, match=f"cannot write the plot .*{name}"):
            plot_curves(tmp_path, tmp_path / name)
