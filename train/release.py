"""Turns finished runs into a release: weights, manifest entry and records."""

import dataclasses
import fcntl
import gzip
import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shiftjax.apps.verify import sample_logits
from shiftjax.errors import InputError
from shiftjax.releases import manifest
from shiftjax.summary import summarize
from shiftjax.weights import SUFFIX, Card, Pretrained, digest, open_pretrained, save
from train import config as config_file
from train import experiments, files
from train.assemble import set_up
from train.config import Config
from train.evaluation import read_checkpoint
from train.logging import metric_names
from train.logging.records import METRICS_FILE, read_metrics, read_test
from train.machine import hardware, trained_by
from train.state import network_variables
from train.tasks import card_fields, load_split
from train.tasks.models import make_model

LOGS = "logs"
LOCK = ".lock"  # one process at a time adds releases to a folder

_LOG = logging.getLogger(__name__)


def load_run(workdir: str | os.PathLike[str], step: int | None = None) -> Pretrained:
    """Loads the network of a run from its Orbax checkpoint.

    Args:
      workdir: the folder of the run.
      step: the step of the checkpoint; None for the newest intact one. Damaged ones are
        logged.

    Returns:
      The network, its variables (their moving average, if the run has one) and a card.

    Raises:
      InputError: if there is no such run or checkpoint.
    """
    config = config_file.load_config(workdir)
    examples = load_split(config, "test")
    setup = set_up(config, examples)
    restored = read_checkpoint(workdir, setup, step)
    for message in restored.skipped:
        _LOG.warning("%s: %s, step %d is loaded", workdir, message, restored.step)
    classes = setup.trainer.task.class_names(examples)
    given = {"num_classes": len(classes)} if classes else {}
    config = config_file.published(config)
    card = Card(
        architecture=config.model.name,
        options=given | config.model.overrides,
        class_names=classes,
        image_size=config.data.image_size,
        resize=config.data.resize,
        mean=config.data.mean,
        std=config.data.std,
        dataset=config.data.source,
        seed=config.seed,
        commit=trained_by(files.folder(workdir)),
    )
    variables = network_variables(restored.state.variables)
    return Pretrained(card.model(), variables, card)


def release(
    workdirs: Sequence[str | os.PathLike[str]],
    tag: str,
    directory: str | Path,
    *,
    recipe: str = "",
    license_name: str = "Apache-2.0",
) -> manifest.Release:
    """Releases finished runs that differ only in their seeds.

    Writes the variables of the lowest seed to `architecture.tag.safetensors`, the
    compressed logs to `logs/`, and an entry to the manifest. An older entry keeps its
    runs of other seeds.

    Args:
      workdirs: the folders of the runs.
      tag: the part of the name after the architecture.
      directory: the folder of releases, which is made if it does not exist.
      recipe: the name of the training recipe.
      license_name: the license of the weights.

    Returns:
      The entry of the manifest.

    Raises:
      InputError: if a run is not finished, if the runs differ in more than their seeds,
        or if the name belongs to another recipe.
    """
    folders = [files.folder(workdir) for workdir in workdirs]
    configs = [config_file.load_config(folder) for folder in folders]
    _same_but_seeds(configs)
    out = Path(directory)
    check_release(configs[0], tag, out, recipe=recipe)
    facts = {"recipe": recipe, "license": license_name}
    with (out / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        return _add(folders, configs, f"{configs[0].model.name}.{tag}", out, facts)


def check_release(
    config: Config, tag: str, directory: str | Path, *, recipe: str = ""
) -> None:
    """Checks that a run can be released, also before it is trained.

    Args:
      config: the run's configuration.
      tag: the part of the name after the architecture.
      directory: the folder of releases, which is made if it does not exist.
      recipe: the name of the training recipe.

    Raises:
      InputError: if the tag is not allowed, the name belongs to another recipe, the
        network is unknown, its options cannot be written, or the folder cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9_]+", tag):
        raise InputError(f"--tag {tag!r}: only letters, digits and _ are allowed")
    make_model(config)
    for option, value in config.model.overrides.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"--model.overrides {option} {value}: a release's card holds only "
                "finite numbers"
            ) from error
    out = Path(directory)
    try:
        (out / LOGS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {out} cannot be written: {error}") from error
    older = _releases(out).get(f"{config.model.name}.{tag}")
    if older is not None and older.recipe != recipe:
        raise InputError(
            f"{older.name} is released with recipe {older.recipe!r}, not {recipe!r}: "
            "choose another --tag"
        )


def _releases(out: Path) -> dict[str, manifest.Release]:
    """Reads the releases of a folder; empty if it has no manifest."""
    return manifest.read(out) if (out / manifest.FILE).exists() else {}


def _add(
    folders: Sequence[files.Folder],
    configs: Sequence[Config],
    name: str,
    out: Path,
    facts: dict[str, Any],
) -> manifest.Release:
    """Adds runs to a release, and the release to the manifest.

    Args:
      folders: the folders of the runs.
      configs: their configurations.
      name: the name of the release.
      out: the folder of releases.
      facts: fields of the card that neither the checkpoint nor the test has.
    """
    releases = _releases(out)
    older = releases.get(name)
    examples = len(load_split(configs[0], configs[0].data.train_on))
    runs = {run.seed: run for run in older.runs} if older else {}
    own = {c.seed: (folder, c) for folder, c in zip(folders, configs, strict=True)}
    for seed, (folder, config) in own.items():
        runs[seed] = _run(folder, config, out, name, examples)
    ordered = tuple(runs[seed] for seed in sorted(runs))
    first = ordered[0].seed
    if first in own:
        folder, config = own[first]
        test = read_test(folder)
        assert test is not None  # `_run` has read it
        facts = facts | card_fields(config, ordered[0].test)
        entry = _weights(folder, test["step"], name, out, facts)
    else:
        assert older is not None  # it has the run of this seed
        entry = older
    entry = dataclasses.replace(entry, runs=ordered)
    manifest.write_manifest(out, releases | {name: entry})
    return entry


def _weights(
    folder: files.Folder, step: int, name: str, out: Path, facts: dict[str, Any]
) -> manifest.Release:
    """Writes the weights of a run, and returns their entry without runs.

    Args:
      folder: the folder of the run.
      step: the step of the test, and of no older checkpoint if that is damaged.
      name: the name of the release.
      out: the folder of releases.
      facts: fields of the card that the checkpoint does not have.
    """
    pretrained = load_run(folder, step)
    card = dataclasses.replace(pretrained.card, **facts)
    path = out / f"{name}{SUFFIX}"
    size, sha256 = digest(save(path, pretrained.variables, card))
    costs = summarize(card.model(), card.image_size, channels=len(card.mean))
    return manifest.Release(
        name,
        path.name,
        size,
        sha256,
        costs.params,
        costs.macs,
        card.dataset,
        card.recipe,
        (),
        sample_logits(open_pretrained(str(path))),
    )


def _same_but_seeds(configs: Sequence[Config]) -> None:
    """Raises InputError unless the runs differ in their seeds, and only in these."""
    first = configs[0]
    for other in configs[1:]:
        same = dataclasses.replace(other, seed=first.seed)
        if changed := config_file.differences(first, same):
            raise InputError(f"the runs differ in more than their seeds: {changed[0]}")
    seeds = [config.seed for config in configs]
    if len(set(seeds)) < len(seeds):
        raise InputError(f"two runs have the same seed: {seeds}")


def _run(
    folder: files.Folder, config: Config, out: Path, name: str, examples: int
) -> manifest.Run:
    """Describes a finished run, and copies its log."""
    records, test = read_metrics(folder), read_test(folder)
    if test is None or _is_short(test, config):
        raise InputError(
            f"{folder} is not finished: continue it with `python -m train resume "
            f"--workdir {folder}`"
        )
    log = f"{LOGS}/{name}.seed{config.seed}.jsonl.gz"
    text = (folder / METRICS_FILE).read_bytes()
    (out / log).write_bytes(gzip.compress(text, mtime=0))
    validation = [r for r in records if r["split"] == "validation"]
    return manifest.Run(
        seed=config.seed,
        test=_means(test),
        validation=_means(validation[-1]) if validation else {},
        epochs=config.epochs,
        hours=round(_hours(records, examples), 2),
        hardware=", then ".join(hardware(folder)),
        command=experiments.command(config_file.published(config)),
        commit=trained_by(folder),
        log=log,
    )


def _is_short(test: dict[str, Any], config: Config) -> bool:
    """Returns True for a test of fewer epochs, of a run that is to be prolonged.

    A run ends within half a step of its epochs. The log has four decimals.
    """
    half = test["epoch"] / test["step"] / 2
    return config.epochs - test["epoch"] > half + 1e-4


def _means(record: dict[str, Any]) -> dict[str, float]:
    return {name: record[name] for name in metric_names.displayed(record)}


def _hours(records: Sequence[dict[str, Any]], examples: int) -> float:
    """Returns the hours of training, from the images per second of each line."""
    seconds, epoch = 0.0, 0.0
    for line in records:
        if line["split"] == "train":
            seconds += examples * (line["epoch"] - epoch) / line["images_per_second"]
            epoch = line["epoch"]
    return seconds / 3600
