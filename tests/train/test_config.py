"""The configuration: what is allowed, and what is kept."""

import dataclasses
import json
import math
import re
import typing

import pytest

from shiftjax.errors import InputError, MissingFileError
from tests.train.configurations import OTHER, as_flag, names, value_of
from train import config, experiments
from train.__main__ import parse
from train.config import Config, Data, Faces, Hosts, Style

# A promise to users, so it is written out: what may differ when a run is resumed is
# where things are, how often something is written, and on what it is computed.
RESUMABLE = {
    "workdir",
    "data.data_dir",
    "data.resident_bytes",
    "data.decode",
    "data.threads",
    "data.on_corrupt",
    "eval_batch_size",
    "eval_epochs",
    "save_epochs",
    "save_minutes",
    "log_steps",
    "keep_last",
    "keep_best",
    "steps_per_dispatch",
    "devices",
    "backend",
    "log_to",
    "profile",
    "stopped_exit_code",
    "hosts.coordinator",
    "hosts.count",
    "hosts.index",
    "hosts.timeout",
}

INF = math.inf

# An independent few of the values that are refused, and what the refusal says.
REFUSED = {
    ("seed", 2**31): "0 to 2147483647",
    ("epochs", 0): "above 0",
    ("epochs", INF): "finite",
    ("batch_size", 0): "at least 1",
    ("label_smoothing", 1.5): "0 to 1",
    ("ema_decay", -0.1): "0 to 1",
    ("data.image_size", 0): "at least 1",
    ("augment.mixup", -0.1): "at least 0",
    ("augment.erase", 1.1): "0 to 1",
    ("augment.rand_augment_magnitude", 31): "0 to 30",
    ("accumulate", 0): "at least 1",
    ("optimizer.momentum", 1.1): "0 to 1",
    ("optimizer.clip_norm", 0): "above 0",
    ("schedule.learning_rate", -0.1): "at least 0",
    ("schedule.factor", 2): "0 to 1",
    ("save_epochs", 0): "above 0",
    ("save_minutes", 0): "above 0",
    ("log_steps", 0): "at least 1",
    ("profile", 0): "at least 1",
    ("keep_best", -1): "at least 0",
    ("stopped_exit_code", 256): "0 to 255",
    ("hosts.index", -1): "at least 0",
}


def changed(run: Config, name: str, value: object) -> Config:
    """The run with one field, of a dotted name, set to a value."""
    group, _, last = name.rpartition(".")
    if not group:
        return dataclasses.replace(run, **{name: value})
    inner = dataclasses.replace(getattr(run, group), **{last: value})
    return dataclasses.replace(run, **{group: inner})


def numbers() -> list[str]:
    """The dotted name of every field that holds one number."""
    return [
        name
        for name in names()
        if isinstance(value_of(OTHER, name), int | float)
        and not isinstance(value_of(OTHER, name), bool)
    ]


def edges() -> list[tuple[str, float, bool]]:
    """Every number's name, the values around its bounds, and if each is allowed."""
    found = []
    for name in numbers():
        bounds = config.OPTIONS[name].metadata["bounds"]
        whole = isinstance(value_of(OTHER, name), int)

        def beside(value: float, way: float, whole: bool = whole) -> float:
            return value + int(way) if whole else math.nextafter(value, way * INF)

        if bounds.low is not None:
            found += [(name, bounds.low, True), (name, beside(bounds.low, -1), False)]
        if bounds.above is not None:
            found += [
                (name, bounds.above, False),
                (name, beside(bounds.above, 1), True),
            ]
        if bounds.high is not None:
            found += [(name, bounds.high, True), (name, beside(bounds.high, 1), False)]
    return found


# --- what is allowed ----------------------------------------------------------------


def test_defaults_are_valid():
    config.validate(Config())
    config.validate(OTHER)


@pytest.mark.parametrize("name", numbers())
def test_every_number_has_a_lowest_value_that_refuses_nan(name):
    bounds = config.OPTIONS[name].metadata["bounds"]
    assert (bounds.low is None) != (bounds.above is None)
    with pytest.raises(InputError, match=f"{as_flag(name)} nan: it must be "):
        config.validate(changed(Config(), name, math.nan))


@pytest.mark.parametrize(("name", "value", "allowed"), edges())
def test_a_bound_separates_what_is_allowed_from_what_is_refused(name, value, allowed):
    run = changed(changed(OTHER, "schedule.warmup_epochs", 0), name, value)
    if allowed:
        config.validate(run)
        return
    with pytest.raises(InputError) as caught:
        config.validate(run)
    message = str(caught.value)
    assert message.startswith(f"{as_flag(name)} {value}: it must be ")
    assert "\n" not in message


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_a_value_beyond_the_bounds_is_refused_in_these_words(name, value):
    with pytest.raises(InputError) as caught:
        config.validate(changed(Config(), name, value))
    wanted = f"{as_flag(name)} {value}: it must be {REFUSED[name, value]}"
    assert str(caught.value) == wanted


def test_optional_numbers_may_be_absent():
    absent = [name for name in numbers() if value_of(Config(), name) is None]
    assert {"ema_decay", "devices", "hosts.index"} < set(absent)
    for name in absent:
        config.validate(changed(OTHER, name, None))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data.std", (0.5, 0.0, 0.5)),
        ("data.std", (0.5, -1.0, 0.5)),
        ("optimizer.rates", {"stem": -0.1}),
        ("optimizer.rates", {"stem": INF}),
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
    config.save_config(run, tmp_path)
    loaded = config.load_config(tmp_path)
    assert loaded == dataclasses.replace(run, hosts=Hosts())  # one file for all hosts
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_other_values_cover_every_field():
    """Else the test above says nothing of the fields that are at their default."""
    assert [n for n in names() if value_of(OTHER, n) == value_of(Config(), n)] == [
        "model.sync_batch_norm"
    ]


def test_the_file_is_json_with_every_field(tmp_path):
    config.save_config(OTHER, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for name in names():
        group, _, last = name.rpartition(".")
        stored = (values[group] if group else values)[last]
        run = Config() if group == "hosts" else OTHER  # each host has its own
        wanted = value_of(run, name)
        assert stored == (list(wanted) if isinstance(wanted, tuple) else wanted)


def test_a_field_that_the_file_does_not_have_takes_its_default(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 3, "data": {"image_size": 8}}')
    assert config.load_config(tmp_path) == Config(seed=3, data=Data(image_size=8))


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
        config.load_config(tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "config.json") in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ['{"colour": 1}', '{"data": {"colour": 1}}'])
def test_an_unknown_field_is_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"unknown options: (data\.)?colour$"):
        config.load_config(tmp_path)


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"config\.json"):
        config.load_config(tmp_path)


@pytest.mark.parametrize("kind", ["nothing", "folder"])
def test_a_folder_without_a_run_is_named(kind, tmp_path):
    if kind == "folder":
        (tmp_path / "config.json").mkdir()
    with pytest.raises(MissingFileError, match=re.escape(f"{tmp_path} holds no run")):
        config.load_config(tmp_path)


@pytest.mark.parametrize("run", [Config(), OTHER], ids=["defaults", "others"])
def test_every_field_can_be_given_on_the_command_line(run, command_line):
    assert parse(command_line(run)) == run


# --- what may differ when a run is resumed ------------------------------------------


def test_the_options_that_a_resumed_run_may_change_are_these():
    assert config.FREE == RESUMABLE


def test_the_options_that_hosts_may_differ_in_are_these():
    hosts = {"hosts.coordinator", "hosts.index", "hosts.timeout"}
    assert hosts | {"workdir", "data.data_dir"} == config.PER_HOST
    new = dataclasses.replace(Config(), workdir="elsewhere", eval_batch_size=64)
    assert config.differences(Config(), new, config.PER_HOST) == [
        "--eval-batch-size was 512, is 64"
    ]


@pytest.mark.parametrize("name", names())
def test_a_difference_is_named_with_both_values_where_it_matters(name):
    group = name.partition(".")[0]
    old = Config(task=group) if group in ("style", "faces") else Config()
    new = changed(old, name, value_of(OTHER, name))
    if name == "model.sync_batch_norm":
        new = changed(old, name, False)
    found = config.differences(old, new)
    if name in RESUMABLE:
        assert found == []
    else:
        before, after = value_of(old, name), value_of(new, name)
        assert found == [f"{as_flag(name)} was {before}, is {after}"]


def test_a_folder_is_the_same_by_a_relative_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    one, other = (
        changed(Config(), "data.source", f"folder:{path}")
        for path in ("images", tmp_path / "images")
    )
    assert config.differences(one, other) == []
    assert config.absolute(one) == other
    assert config.absolute(Config()) == Config()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("augment.crop_scale", (0.0, 1.0), "crop-scale 0.0 1.0: it must be"),
        ("augment.crop_scale", (0.5, 0.25), "crop-scale 0.5 0.25: it must be"),
        ("augment.crop_scale", (0.5, 1.5), "crop-scale 0.5 1.5: it must be"),
        ("data.decode", "once", "--data.decode once: --augment.random-resized-crop"),
    ],
)
def test_random_crops_that_cannot_be(name, value, message):
    run = changed(changed(Config(), "augment.random_resized_crop", True), name, value)
    with pytest.raises(InputError, match=re.escape(message)):
        config.validate(run)


def test_the_same_run_has_no_differences():
    assert config.differences(OTHER, dataclasses.replace(OTHER)) == []


def test_options_of_another_task_are_no_difference():
    """A later version may have another default for them."""
    old = Config(style=Style(content_weight=1e5), faces=Faces(margin=0.3))
    assert config.differences(old, Config()) == []
    found = config.differences(changed(old, "task", "style"), Config(task="style"))
    assert found == ["--style.content-weight was 100000.0, is None"]
    same = dataclasses.replace(experiments.load("digits"), style=old.style)
    assert experiments.command(same) == "python -m train digits"


def test_all_differences_are_named():
    own = {name for name in names() if not name.startswith("faces.")}  # of no task here
    assert len(config.differences(Config(), OTHER)) == len(
        own - RESUMABLE - {"model.sync_batch_norm"}
    )


# --- files and folders --------------------------------------------------------------

# The options that name one, with a value that does: text before the path, and the path.
PATHS = {
    "init": ("", "nets/a.safetensors"),
    "data.source": ("folder:", "nets/photos"),
    "data.data_dir": ("", "nets/tfds"),
    "style.image": ("", "nets/starry.jpg"),
    "style.features": ("", "nets/b.safetensors"),
    "style.weights": ("", "nets/vgg.pth"),
    "faces.pairs": ("", "nets/pairs.txt"),
    "faces.images": ("", "nets/lfw"),
}


def test_every_option_with_text_is_a_path_or_known_not_to_be_one():
    hints = typing.get_type_hints
    kinds = {name: hints(Config)[name] for name in names() if "." not in name}
    for group, kind in config.GROUPS.items():
        kinds |= {f"{group}.{name}": x for name, x in hints(kind).items()}
    texts = {name for name, kind in kinds.items() if kind in (str, str | None)}
    others = {"task", "workdir", "model.name", "hosts.coordinator"}
    others |= {"style.content_layer", "style.source"}
    assert texts - others == set(PATHS)


@pytest.mark.parametrize("name", PATHS)
def test_a_path_is_recorded_from_the_root_and_released_by_its_name(
    name, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    before, path = PATHS[name]
    given = changed(Config(), name, before + path)
    absolute = config.absolute(given)
    assert absolute == changed(Config(), name, f"{before}{tmp_path / path}")
    assert config.differences(given, absolute) == []
    last = before + path.removeprefix("nets/")
    for run in (given, absolute):
        assert config.published(run) == changed(Config(), name, last)


def test_a_folder_is_released_by_its_name_also_with_a_slash_at_its_end():
    run = config.published(Config(data=Data("folder:/home/ada/photos/")))
    assert run.data.source == "folder:photos"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("init", "resnet20.cifar10"),
        ("data.source", "tfds:cifar10"),
        ("style.features", "vgg16"),
        ("data.data_dir", "gs://bucket/tfds"),
    ],
)
def test_a_name_and_an_object_store_are_no_local_paths(name, value):
    run = changed(Config(), name, value)
    assert config.absolute(run) == run
