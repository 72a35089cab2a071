"""Pickles, read without running them: attacks, plain values and wrong ones."""

import argparse
import collections
import datetime
import decimal
import io
import os
import pathlib
import pickle
import subprocess
import sys
import uuid

import numpy as np
import pytest

from shiftjax import InputError
from shiftjax.convert.torch_files import read_torch_file
from shiftjax.convert.torch_files.unpickle import load_torch_pickle
from shiftjax.convert.torch_files.values import Name, Record
from tests.shiftjax.convert import torch_writer as writer
from tests.shiftjax.convert.conftest import MARK, SYSTEM, damaged
from tests.shiftjax.convert.torch_writer import Call, Global, Instance


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def pickled(value):
    """A pickle of stand-ins, alone."""
    file = io.BytesIO()
    writer.Pickler(file).dump(value)
    return file.getvalue()


def two_states(command):
    """An object whose first state is a method that takes the second."""
    state = {"__setstate__": Global("os", "system")}
    first = pickled(Instance(Global("types", "SimpleNamespace"), state))
    return first[:-1] + pickled(command)[2:-1] + b"b."


def text(command):
    """A text of protocol 0."""
    return f"S'{command}'\n".encode()


ATTACKS = {
    "REDUCE": lambda command: pickle.dumps(Attack(command), 2),
    "REDUCE, protocol 0": lambda command: pickle.dumps(Attack(command), 0),
    "REDUCE, protocol 4": lambda command: pickle.dumps(Attack(command), 4),
    "REDUCE, nested": lambda command: pickle.dumps({"a": [(1, Attack(command))]}, 2),
    "REDUCE, dropped": lambda command: pickle.dumps(Attack(command), 2)[:-1] + b"0N.",
    "INST": lambda command: b"(" + text(command) + b"ios\nsystem\n.",
    "OBJ": lambda command: b"(cos\nsystem\n" + text(command) + b"o.",
    "BUILD": two_states,
    "getattr": lambda command: pickled(
        Call(
            Call(
                Global("builtins", "getattr"),
                (Call(Global("builtins", "__import__"), ("os",)), "system"),
            ),
            (command,),
        )
    ),
    "eval": lambda command: pickled(
        Call(Global("builtins", "eval"), (f"__import__('os').system({command!r})",))
    ),
    "Popen": lambda command: pickled(
        Call(Global("subprocess", "getoutput"), (command,))
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_python_would_run_these(tmp_path, attack):
    """Else the next test could not fail."""
    witness = tmp_path / "witness"
    data = ATTACKS[attack](f"touch {witness}")
    program = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    subprocess.run([sys.executable, "-c", program], input=data, timeout=60)
    assert witness.exists()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("place", ["alone", "first", "value", "archive"])
def test_nothing_is_run(tmp_path, attack, place):
    witness, path = tmp_path / "witness", tmp_path / "attack.t7"
    data = ATTACKS[attack](f"touch {witness}")
    if place == "alone":
        with pytest.raises(InputError):
            load_torch_pickle(io.BytesIO(data), {})
    else:
        if place == "archive":
            data = writer.archive({}, **{"data.pkl": data})
        elif place == "value":
            data = damaged(MARK, 1001, SYSTEM) + data + damaged([])
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"attack\.t7: it"):
            read_torch_file(path)
    assert not witness.exists()


@pytest.mark.parametrize("name", ["REDUCE", "INST", "OBJ", "REDUCE, nested"])
def test_what_would_have_been_called_is_named(name):
    with pytest.raises(InputError, match=r"it calls (os|posix)\.system, "):
        load_torch_pickle(io.BytesIO(ATTACKS[name]("true")))


def test_a_network_with_an_attack_beside_it_is_refused(save, arrays, tmp_path):
    witness = tmp_path / "witness"
    attack = Call(Global("os", "system"), (f"touch {witness}",))
    path = save({"net": writer.module(arrays), "acc": [attack]})
    with pytest.raises(InputError, match=r"calls os\.system, "):
        read_torch_file(path)
    assert not witness.exists()


def test_classes_are_never_looked_up():
    """Not even imported; what was saved of an object is kept."""
    state = {"function": Global("this", "s")}
    found = load_torch_pickle(
        io.BytesIO(pickled(Instance(Global("this", "Class"), state)))
    )
    assert (found.path, found.state) == ("this.Class", {"function": Name("this.s")})
    assert "this" not in sys.modules


PLAIN = [
    {"a": [1, 2.5, -(2**40), 2**80], "b": (), "c": ((1,), (1, 2), (1, 2, 3), (1,) * 4)},
    {"text": "é", "bytes": b"\xff", "long": "x" * 300, 3: None, 2.5: True, None: False},
    [[], {}, {"a": {}}, [[[]]]],
]


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("value", PLAIN, ids=["numbers", "text", "containers"])
def test_plain_values(protocol, value):
    if protocol < 3 and "bytes" in value:
        value = {key: v for key, v in value.items() if key != "bytes"}
    assert load_torch_pickle(io.BytesIO(pickle.dumps(value, protocol))) == value


def test_values_that_are_no_tensors_are_records():
    value = {
        "acc": np.float64(91.5),
        "seen": {1, 2},
        "bytes": b"\xff",
        "self": argparse.Namespace(a=1),
    }
    found = load_torch_pickle(io.BytesIO(pickle.dumps(value, 2)))
    assert {type(v) for v in found.values()} == {Record}
    assert found["self"].state == {"a": 1}


class Options(dict):
    """A dict with a class of its own, like those of libraries for configurations."""


class Items(list):
    """A list with a class of its own."""


BESIDE = {
    "path": pathlib.PurePosixPath("/a/b"),
    "place": pathlib.Path("runs"),
    "namespace": argparse.Namespace(lr=0.1, path=pathlib.Path("a")),
    "datetime": datetime.datetime(2024, 2, 29, 1, 2, 3, tzinfo=datetime.UTC),
    "date": datetime.date(2024, 2, 29),
    "duration": datetime.timedelta(seconds=3),
    "scalar": np.float32(1.5),
    "integer": np.int64(7),
    "array": np.arange(6.0).reshape(2, 3),
    "set": {1, 2},
    "frozenset": frozenset([1]),
    "complex": 1 + 2j,
    "range": range(3),
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "Counter": collections.Counter("aab"),
    "deque": collections.deque([1, 2], maxlen=3),
    "Decimal": decimal.Decimal("1.5"),
    "uuid": uuid.UUID(int=5),
    "dict's class": Options(a=1, b={"c": 2}),
    "list's class": Items([1, 2]),
}


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("kind", BESIDE)
def test_common_values_beside_a_network_are_no_reason_to_refuse_it(kind, protocol):
    """They are placeholders, and what follows them is as it was."""
    value = {"epoch": 3, "other": BESIDE[kind], "net": {"bias": [1.0]}}
    found = load_torch_pickle(io.BytesIO(pickle.dumps(value, protocol)))
    assert found["epoch"] == 3
    assert found["net"] == {"bias": [1.0]}
    assert isinstance(found["other"], Record | list)


WRONG = {
    "a text as a key's value of two": b"\x80\x02}(K\x01u.",
    "append to a dict": b"\x80\x02}K\x01a.",
    "items for a list": b"\x80\x02]K\x01K\x01s.",
    "a list as a key": b"\x80\x02}]K\x01s.",
    "a huge number as a key": pickle.dumps({1 << 20_000: 1}, 2),
    "a tuple as a key": b"\x80\x02})K\x01s.",
    "no value": b"\x80\x02.",
    "only a mark": b"\x80\x02(.",
    "no mark": b"\x80\x02K\x01t.",
    "below a mark": b"\x80\x02K\x01(\x86.",
    "unknown memo": b"\x80\x02h\x05.",
    "a state for a list": b"\x80\x02]}b.",
    "an object of a number": b"\x80\x02K\x01)\x81.",
    "a call of a number": b"\x80\x02K\x01)R.",
    "a storage where there are none": b"\x80\x02U\x07storageK\x01\x86Q.",
    "a storage without a key": (
        b"\x80\x02(U\x07storagectorch\nFloatStorage\nK\x01NK\x03tQ."
    ),
    "an extension": b"\x80\x02\x82\x01.",
    "an outside name": b"\x80\x02Pname\n.",
    "a tensor of a number": (b"\x80\x02ctorch._utils\n_rebuild_tensor\n(K\x01K\0))tR."),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_pickles_are_refused(case):
    with pytest.raises(InputError, match=r"^it (is|has|calls)"):
        load_torch_pickle(io.BytesIO(WRONG[case]), None if "are none" in case else {})
