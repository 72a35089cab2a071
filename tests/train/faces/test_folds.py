"""The result of runs for other folds by hand, and runs that do not fit together."""

import dataclasses
import json

import pytest

from shiftjax.errors import InputError
from train.__main__ import run_command
from train.config import Config, Faces, save_config
from train.faces.folds import read_folds


@pytest.fixture
def runs(tmp_path):
    """Two runs of the folds 3 and 1, and of 2, with accuracies of 0.9, 0.8, 0.85."""
    folders = []
    for seed, found in enumerate(({3: 0.9, 1: 0.8}, {2: 0.85})):
        folder = tmp_path / f"run{seed}"
        folder.mkdir()
        faces = Faces(pairs="pairs.txt", images="lfw", folds=tuple(found))
        save_config(Config(task="faces", seed=seed, faces=faces), folder)
        lines = [
            {"step": 4, "split": "train", "accuracy_fold_1": 0.1},
            {"step": 4, "split": "test", "accuracy": 0.85}
            | {f"accuracy_fold_{fold}": x for fold, x in found.items()},
        ]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
        folders.append(str(folder))
    return folders


def test_mean_and_deviation_over_the_folds_by_hand(runs, capsys):
    found = read_folds(runs)
    assert found.accuracies == (0.8, 0.85, 0.9)
    assert found.mean == pytest.approx(0.85)
    assert found.std == pytest.approx(0.05)  # the root of (0.05² + 0 + 0.05²) / 2
    assert found.standard_error == pytest.approx(0.05 / 3**0.5)
    assert run_command(["folds", "--workdir", *runs]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "fold 1: accuracy 80.00%",
        "fold 2: accuracy 85.00%",
        "fold 3: accuracy 90.00%",
        "mean 85.00%, standard deviation 5.00%, standard error 2.89%",
    ]


def test_each_fold_is_needed_once(runs):
    with pytest.raises(InputError, match=r"the folds \[3, 1\]: they must be 1, 2, 3"):
        read_folds(runs[:1])
    with pytest.raises(InputError, match=r"the folds \[2, 2\]"):
        read_folds([runs[1], runs[1]])


def test_other_options_and_unfinished_runs_are_named(runs, tmp_path):
    faces = Faces(pairs="pairs.txt", images="lfw", folds=(2,))
    other = Config(task="faces", seed=1, faces=faces)
    save_config(dataclasses.replace(other, epochs=7.0), runs[1])
    message = "run1 differs from .*run0 in more than the folds and the seed: --epochs"
    with pytest.raises(InputError, match=message):
        read_folds(runs)
    save_config(other, runs[1])
    (tmp_path / "run1" / "metrics.jsonl").write_text('{"step": 4, "split": "train"}\n')
    with pytest.raises(InputError, match="run1 is not finished: continue it with"):
        read_folds(runs)


def test_runs_whose_log_has_no_accuracy_of_each_fold(runs, tmp_path):
    """The accuracy of a single fold is that of the run, as earlier versions logged."""
    line = json.dumps({"step": 4, "split": "test", "accuracy": 0.7})
    (tmp_path / "run1" / "metrics.jsonl").write_text(f"{line}\n")
    assert read_folds(runs).accuracies == (0.8, 0.7, 0.9)
    (tmp_path / "run0" / "metrics.jsonl").write_text(f"{line}\n")
    with pytest.raises(InputError, match="run0: its log has no accuracy_fold_3: an ea"):
        read_folds(runs)
