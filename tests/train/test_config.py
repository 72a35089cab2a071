"""The configuration: what is allowed, what is kept, and what `--help` says of it."""

import ast
import dataclasses
import inspect
import json
import math
import re

import pytest

from shiftjax.errors import InputError, MissingFileError
from train import config, experiments
from train.__main__ import main, parse
from train.config import Augment, Config, Data, Hosts, Model, Optimizer, Schedule, Style

# Nothing at its default.
OTHER = Config(
    workdir="elsewhere",
    task="style",
    seed=7,
    epochs=2.5,
    batch_size=48,
    init="resnet56.cifar10",
    label_smoothing=0.1,
    ema_decay=0.999,
    model=Model("resnet56", {"block_reduction": 2.8, "depth": 8}, "bfloat16", True),
    data=Data(
        "folder:pictures",
        "data",
        64,
        100,
        "train+validation",
        (0.1, 0.2, 0.3),
        (0.4, 0.5, 0.6),
        10**6,
    ),
    augment=Augment(2, False, 0.2, 1.0),
    style=Style("painting.jpg", 64, "squeezenet", "weights.npz", 1.0, 2.0),
    optimizer=Optimizer(
        "adam", 0.8, True, 1e-4, "kernels", 1.0, ("stem", "stage1*"), 0.3, 0.1
    ),
    schedule=Schedule("steps", 0.3, 0.5, (1.0, 2.0), 0.2),
    eval_batch_size=100,
    eval_epochs=0.5,
    save_epochs=0.25,
    log_steps=7,
    keep_last=3,
    keep_best=0,
    steps_per_dispatch=4,
    devices=2,
    backend="shard_map",
    tensorboard=False,
    hosts=Hosts("first:8476", 4, 1, 60),
)

# What may differ when a run is resumed: where things are, how often something is
# written, and on what it is computed.
RESUMABLE = {
    "workdir",
    "data.data_dir",
    "data.resident_bytes",
    "eval_batch_size",
    "eval_epochs",
    "save_epochs",
    "log_steps",
    "keep_last",
    "keep_best",
    "steps_per_dispatch",
    "devices",
    "backend",
    "tensorboard",
    "hosts.coordinator",
    "hosts.count",
    "hosts.index",
    "hosts.timeout",
}

# field: values that are allowed, values that are refused.
INF = math.inf
NUMBERS = {
    "seed": ([0, 2**31 - 1], [-1, 2**31]),
    "epochs": ([0.01, 1000], [0, -1, INF]),
    "batch_size": ([1], [0, -8]),
    "label_smoothing": ([0, 1], [-0.1, 1.1]),
    "ema_decay": ([0, 0.999, None], [-0.1, 1.1]),
    "data.image_size": ([1], [0]),
    "data.validation_examples": ([0, None], [-1]),
    "data.resident_bytes": ([0], [-1]),
    "augment.crop_padding": ([0], [-1]),
    "augment.mixup": ([0, 0.2], [-0.1]),
    "augment.cutmix": ([0, 1], [-0.1]),
    "style.size": ([1], [0]),
    "style.content_weight": ([0, 1e5], [-1]),
    "style.style_weight": ([0, 1e10], [-1]),
    "optimizer.momentum": ([0, 0.9], [-0.1, 1.1]),
    "optimizer.weight_decay": ([0], [-1e-4]),
    "optimizer.clip_norm": ([1e-3, None], [0, -1]),
    "optimizer.muon_rate": ([0, 2], [-0.1]),
    "optimizer.muon_decay": ([0, 0.1], [-0.1]),
    "schedule.learning_rate": ([0, 10], [-0.1]),
    "schedule.warmup_epochs": ([0, 20], [-1]),
    "schedule.factor": ([0, 1], [-0.1, 1.1]),
    "eval_batch_size": ([1], [0]),
    "eval_epochs": ([0.01], [0, -1]),
    "save_epochs": ([0.01], [0, -1]),
    "log_steps": ([1], [0]),
    "keep_last": ([1], [0]),
    "keep_best": ([0], [-1]),
    "steps_per_dispatch": ([1, None], [0]),
    "devices": ([1, None], [0]),
    "hosts.count": ([1, None], [0]),
    "hosts.index": ([0, None], [-1]),
    "hosts.timeout": ([1], [0]),
}


def changed(run: Config, name: str, value: object) -> Config:
    """The run with one field, of a dotted name, set to a value."""
    group, _, last = name.rpartition(".")
    if not group:
        return dataclasses.replace(run, **{name: value})
    inner = dataclasses.replace(getattr(run, group), **{last: value})
    return dataclasses.replace(run, **{group: inner})


def value_of(run: Config, name: str) -> object:
    for part in name.split("."):
        run = getattr(run, part)
    return run


def names() -> list[str]:
    """The dotted name of every field."""
    found = []
    for field in dataclasses.fields(Config):
        value = getattr(Config(), field.name)
        inner = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        found += [f"{field.name}.{f.name}" for f in inner] or [field.name]
    return found


def as_flag(name: str) -> str:
    return "--" + name.replace("_", "-")


# --- what is allowed ----------------------------------------------------------------


def test_defaults_are_valid():
    config.validate(Config())
    config.validate(OTHER)


def test_every_number_has_its_bounds_tested():
    numbers = {
        name
        for name in names()
        if isinstance(value_of(OTHER, name), int | float)
        and not isinstance(value_of(OTHER, name), bool)
    }
    assert set(NUMBERS) == numbers


@pytest.mark.parametrize(
    ("name", "value"), [(name, x) for name, (good, _) in NUMBERS.items() for x in good]
)
def test_values_within_the_bounds_are_allowed(name, value):
    run = changed(OTHER, "schedule.warmup_epochs", 0)
    config.validate(changed(dataclasses.replace(run, epochs=20.0), name, value))


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, x) for name, (_, bad) in NUMBERS.items() for x in [*bad, math.nan]],
)
def test_values_beyond_the_bounds_are_refused_by_their_flag(name, value):
    with pytest.raises(InputError) as caught:
        config.validate(changed(Config(), name, value))
    message = str(caught.value)
    assert message.startswith(f"{as_flag(name)} {value}: it must be ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data.std", (0.5, 0.0, 0.5)),
        ("data.std", (0.5, -1.0, 0.5)),
        ("schedule.kind", "steps"),  # without boundaries
        ("schedule.warmup_epochs", 10.5),  # of 10
    ],
)
def test_values_that_do_not_fit_together_are_refused_by_their_flag(name, value):
    with pytest.raises(InputError, match=as_flag(name)):
        config.validate(changed(Config(), name, value))


# --- what is kept -------------------------------------------------------------------


@pytest.mark.parametrize(
    "run",
    [Config(), OTHER, *(experiments.load(name) for name in experiments.names())],
    ids=["defaults", "others", *experiments.names()],
)
def test_a_configuration_comes_back_from_its_file(run, tmp_path):
    config.save(run, tmp_path)
    loaded = config.load(tmp_path)
    assert loaded == dataclasses.replace(run, hosts=Hosts())  # one file for all hosts
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_other_values_cover_every_field():
    """Else the test above says nothing of the fields that are at their default."""
    assert [n for n in names() if value_of(OTHER, n) == value_of(Config(), n)] == [
        "model.sync_batch_norm"
    ]


def test_the_file_is_json_with_every_field(tmp_path):
    config.save(OTHER, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for name in names():
        group, _, last = name.rpartition(".")
        stored = (values[group] if group else values)[last]
        run = Config() if group == "hosts" else OTHER  # each host has its own
        wanted = value_of(run, name)
        assert stored == (list(wanted) if isinstance(wanted, tuple) else wanted)


def test_a_field_that_the_file_does_not_have_takes_its_default(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 3, "data": {"image_size": 8}}')
    assert config.load(tmp_path) == Config(seed=3, data=Data(image_size=8))


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"seed": 3',
        "[]",
        "[1]",
        "5",
        "null",
        '{"data": 5}',
        '{"seed": 3, "colour": 1}',
        '{"data": {"colour": 1}}',
        '{"epochs": "ten"}',
        '{"data": {"std": [0.5, 0.5, "x"]}}',
        '{"seed": -1}',
    ],
)
def test_a_damaged_file_is_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError) as caught:
        config.load(tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "config.json") in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ['{"colour": 1}', '{"data": {"colour": 1}}'])
def test_an_unknown_field_is_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match="colour"):
        config.load(tmp_path)


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"config\.json"):
        config.load(tmp_path)


@pytest.mark.parametrize("kind", ["nothing", "folder"])
def test_a_folder_without_a_run_is_named(kind, tmp_path):
    if kind == "folder":
        (tmp_path / "config.json").mkdir()
    with pytest.raises(MissingFileError, match=re.escape(f"{tmp_path} holds no run")):
        config.load(tmp_path)


@pytest.mark.parametrize("run", [Config(), OTHER], ids=["defaults", "others"])
def test_every_field_can_be_given_on_the_command_line(run, command_line):
    assert parse(command_line(run)) == run


# --- what may differ when a run is resumed ------------------------------------------


@pytest.mark.parametrize("name", names())
def test_a_difference_is_named_with_both_values_where_it_matters(name):
    old = Config()
    new = changed(old, name, value_of(OTHER, name))
    if name == "model.sync_batch_norm":
        new = changed(old, name, False)
    found = config.differences(old, new)
    if name in RESUMABLE:
        assert found == []
    else:
        before, after = value_of(old, name), value_of(new, name)
        assert found == [f"{as_flag(name)} was {before}, is {after}"]


def test_the_same_run_has_no_differences():
    assert config.differences(OTHER, dataclasses.replace(OTHER)) == []


def test_all_differences_are_named():
    assert len(config.differences(Config(), OTHER)) == len(
        set(names()) - RESUMABLE - {"model.sync_batch_norm"}
    )


# --- what `--help` says -------------------------------------------------------------


def docstrings() -> dict[str, str]:
    """The text under each field, by dotted name, read from the source."""
    groups = {"Config": ""} | {
        type(getattr(Config(), field.name)).__name__: f"{field.name}."
        for field in dataclasses.fields(Config)
        if dataclasses.is_dataclass(getattr(Config(), field.name))
    }
    found = {}
    for statement in ast.parse(inspect.getsource(config)).body:
        if isinstance(statement, ast.ClassDef) and statement.name in groups:
            for field, text in zip(statement.body, statement.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    name = f"{groups[statement.name]}{field.target.id}"
                    found[name] = ast.literal_eval(text.value)
    return found


@pytest.fixture
def help_text(capsys, monkeypatch) -> str:
    """What `python -m train digits --help` prints, in one line without frames."""
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stopped:
        main(["digits", "--help"])
    assert stopped.value.code == 0
    return " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())


def test_every_field_is_explained_in_the_help(help_text):
    texts = docstrings()
    assert set(texts) == set(names())
    for name, text in texts.items():
        flag = as_flag(name)
        assert re.search(
            rf"{re.escape(flag)}[ ,].{{1,80}}?{re.escape(' '.join(text.split()))} ",
            help_text,
        ), flag


def test_the_help_has_the_defaults_of_the_experiment(help_text):
    run = experiments.load("digits")
    for name in ("seed", "epochs", "log_steps", "schedule.learning_rate"):
        found = re.search(rf"{as_flag(name)} .*?\(default: (.*?)\)", help_text)
        assert found
        assert float(found[1]) == value_of(run, name)
