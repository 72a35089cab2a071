"""A release as the folder of a repository of the Hugging Face Hub.

The folder holds the weights, a manifest of this one release, so that `load_pretrained`
reads the repository, the card as `config.json`, and `README.md`, the model card with
the Hub's metadata. `hf upload owner/name FOLDER` uploads it.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from shiftjax.errors import InputError, needs_extra
from shiftjax.files import user_path
from shiftjax.releases import manifest
from shiftjax.releases.manifest import Release
from shiftjax.weights import Card, Pretrained, open_pretrained

WEIGHTS = "model.safetensors"  # the name whose parameters the Hub counts
CONFIG = "config.json"
README = "README.md"
CLASSIFICATION = "image-classification"
# The Hub's tasks, by what a network returns.
PIPELINES = {
    "logits": CLASSIFICATION,
    "embeddings": "image-feature-extraction",
    "images": "image-to-image",
}
# Repositories of the Hub with the training sets, and their titles.
DATASETS = {
    "tfds:cifar10": ("uoft-cs/cifar10", "CIFAR-10"),
    "tfds:cifar100": ("uoft-cs/cifar100", "CIFAR-100"),
    "tfds:imagenet2012": ("ILSVRC/imagenet-1k", "ImageNet"),
}
ACCURACIES = {"top1": "test top-1", "top5": "test top-5"}

BODY = """
# {name}

`{architecture}` of shiftjax, trained on {dataset}: {params:,} parameters, {macs:,}
multiply-adds for an image of {size} pixels. shiftjax implements the shift
operation (Wu et al., [*Shift: A Zero FLOP, Zero Parameter Alternative to Spatial
Convolutions*](https://arxiv.org/abs/1711.08141), CVPR 2018) in JAX and Flax.

```python
import shiftjax

model, variables = shiftjax.load_pretrained(
    "{name}", directory="hf:{repository}"
)
{outputs} = model.apply(variables, images)
```

This needs `shiftjax[hub]`. `images` are float32, `[batch, height, width, {channels}]`:
values in 0 .. 1, minus {mean}, divided by {std}.

## Results

Each row is one training run, which reads the test set once. The weights are those of
the first row.

| seed | {metrics} | epochs | hardware | command |
|---|{rule}--:|---|---|
{rows}
"""


def write_hub_folder(
    name: str,
    output: str | os.PathLike[str],
    directory: str | os.PathLike[str] | None = None,
    *,
    repository: str = "owner/name",
) -> Path:
    """Writes a release as the folder of a repository of the Hub.

    Args:
      name: "architecture.tag", a name of `list_models(pretrained=True)`.
      output: the folder, which is made if it does not exist.
      directory: the folder of the releases; see `shiftjax.load_pretrained`.
      repository: the repository that the example of the model card names.

    Returns:
      The folder, which `load_pretrained(name, directory=...)` reads too.

    Raises:
      UnknownNameError: if there is no such release.
      InputError: if the release is damaged or has no results, the folder has another
        release or cannot be written, or the client of the Hub is not installed.
    """
    pretrained = open_pretrained(name, directory)
    release = pretrained.release
    if release is None:
        raise InputError(
            f"{name} is a file without results: give the name of a release"
        )
    text = model_card(pretrained, release, repository)
    data = manifest.verified(release, directory)
    # The logs of the runs stay in the folder of the releases.
    runs = tuple(dataclasses.replace(run, log="") for run in release.runs)
    entry = dataclasses.replace(release, file=WEIGHTS, runs=runs)
    config = json.dumps(dataclasses.asdict(pretrained.card), indent=2)
    folder = user_path(output)
    _check_folder(folder, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / WEIGHTS).write_bytes(data)
        (folder / CONFIG).write_text(f"{config}\n")
        (folder / README).write_text(text, encoding="utf-8")
        manifest.write_manifest(folder, {name: entry})
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}") from error
    return folder


def _check_folder(folder: Path, name: str) -> None:
    """Raises InputError if a folder has a manifest that would be lost."""
    if not (folder / manifest.FILE).is_file():
        return
    for release in manifest.read(folder).values():
        if (release.name, release.file) != (name, WEIGHTS):
            raise InputError(
                f"{folder} has the release {release.name} in {release.file}, which its "
                "manifest would no longer name: give another folder"
            )


def model_card(pretrained: Pretrained, release: Release, repository: str) -> str:
    """Returns the text of a model card: the Hub's metadata, and a page in Markdown.

    Args:
      pretrained: the network and its card.
      release: its entry in the manifest.
      repository: the repository that the example names.

    Raises:
      InputError: if the release has no results, or the client of the Hub is not
        installed.
    """
    card, tests = pretrained.card, [run.test for run in release.runs]
    measured = [m for m in (tests or [{}])[0] if all(m in test for test in tests)]
    if not measured:
        raise InputError(
            f"{release.name} has no result in the manifest that all its runs have, "
            "which a model card needs"
        )
    metrics = [name for name in measured if name != "loss"] or ["loss"]
    body = BODY.format(
        name=release.name,
        architecture=release.architecture,
        dataset=_dataset(card)[1],
        params=release.params,
        macs=release.macs,
        size=" x ".join(map(str, card.image_shape()[:2])),
        channels=len(card.mean),
        mean=list(card.mean),
        std=list(card.std),
        outputs=pretrained.model.outputs,
        repository=repository,
        metrics=" | ".join(ACCURACIES.get(name, name) for name in metrics),
        rule="--:|" * len(metrics),
        rows="\n".join(
            f"| {run.seed} | {' | '.join(_text(m, run.test[m]) for m in metrics)} | "
            f"{run.epochs:g} | {run.hardware} | `{run.command}` |"
            for run in release.runs
        ),
    )
    return f"---\n{_metadata(pretrained, release)}\n---\n{body}"


def _metadata(pretrained: Pretrained, release: Release) -> str:
    """Returns the Hub's metadata in YAML."""
    with needs_extra("a model card", "hub"):
        from huggingface_hub import EvalResult, ModelCardData
    card, pipeline = pretrained.card, PIPELINES[pretrained.model.outputs]
    known = card.dataset in DATASETS
    identifier, title = _dataset(card)
    test = release.runs[0].test  # the weights are of this run
    shares = [name for name in ACCURACIES if name in test]
    fields: dict[str, Any] = {}
    if shares and pipeline == CLASSIFICATION:
        fields["metrics"] = ["accuracy"]
        fields["model_name"] = release.name
        fields["eval_results"] = [
            EvalResult(
                task_type=pipeline,
                dataset_type=identifier,
                dataset_name=title,
                dataset_split="test",
                metric_type="accuracy",
                metric_name=ACCURACIES[name],
                metric_value=test[name],
            )
            for name in shares
        ]
    return ModelCardData(
        license=card.license.lower(),
        library_name="shiftjax",
        pipeline_tag=pipeline,
        tags=["jax", "flax", "shift"],
        datasets=[identifier] if known else None,
        **fields,
    ).to_yaml()


def _dataset(card: Card) -> tuple[str, str]:
    """Returns the identifier and the title of a training set."""
    name = card.dataset.rpartition(":")[2] or "unknown"
    return DATASETS.get(card.dataset, (name, name))


def _text(metric: str, value: float) -> str:
    """Formats a metric; the accuracies in percent."""
    return f"{100 * value:.2f}%" if metric in ACCURACIES else f"{value:.4g}"
