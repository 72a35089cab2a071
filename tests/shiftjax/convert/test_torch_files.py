"""Files of PyTorch, read without it: both formats, and damaged ones."""

import collections
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from shiftjax import InputError, MissingFileError
from shiftjax.convert.torch_files import (
    named_tensors,
    parse_safetensors,
    read_torch_file,
)
from shiftjax.convert.torch_files.values import Record
from tests.shiftjax.convert import torch_writer as writer
from tests.shiftjax.convert.conftest import MARK, SYSTEM, damaged
from tests.shiftjax.convert.torch_writer import Stored


def assert_same(actual, expected):
    """The same arrays by the same names."""
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert type(actual[name]) is np.ndarray
        assert actual[name].dtype == array.dtype
        np.testing.assert_array_equal(actual[name], array)


WRAPPED = {
    "state dict": lambda value: value,
    "net": lambda value: {"net": value, "acc": 91.2, "epoch": 159},
    "state_dict": lambda value: {"epoch": 1, "state_dict": value, "optimizer": {}},
    "model": lambda value: {"model": value},
    "model_state_dict": lambda value: {"epoch": 1, "model_state_dict": value},
    "nested": lambda value: {"model": {"state_dict": value, "config": {}}},
}


@pytest.mark.parametrize("wrap", WRAPPED)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model."])
def test_state_dicts(save, arrays, wrap, prefix):
    saved = {f"{prefix}{name}": writer.tensor(a) for name, a in arrays.items()}
    path = save(WRAPPED[wrap](collections.OrderedDict(saved)))
    assert_same(named_tensors(read_torch_file(path)), arrays)


PARAMETERS = {
    "PyTorch 0.2": (writer.old_parameter, writer.ordered),
    "PyTorch 0.4.0": (writer.tensor, writer.ordered),
    "Python 3": (writer.parameter, collections.OrderedDict),
}


@pytest.mark.parametrize("version", PARAMETERS)
@pytest.mark.parametrize("wrap", WRAPPED)
def test_modules(save, arrays, version, wrap):
    saved = writer.module(arrays, *PARAMETERS[version])
    assert_same(named_tensors(read_torch_file(save(WRAPPED[wrap](saved)))), arrays)


def test_a_module_within_data_parallel(save, arrays):
    saved = writer.module({f"module.{name}": a for name, a in arrays.items()})
    assert_same(named_tensors(read_torch_file(save({"net": saved}))), arrays)


def test_text_of_python_2(tmp_path, arrays):
    """Reads text of any bytes, also long ones like the source of a module."""
    value = {"net": writer.module(arrays), "note": "\xff" * 300}
    path = tmp_path / "checkpoint.t7"
    path.write_bytes(writer.legacy(value, python2=True))
    assert b"X\x0c\0\0\0_parameters" not in path.read_bytes()
    assert b"U\x0b_parameters" in path.read_bytes()
    assert read_torch_file(path)["note"] == "\xff" * 300
    assert_same(named_tensors(read_torch_file(path)), arrays)


def test_a_state_dict_of_python_2_has_attributes(save, arrays):
    """The versions of its modules, as a state of the OrderedDict."""
    saved = writer.ordered((name, writer.tensor(a)) for name, a in arrays.items())
    saved.state = {"_metadata": collections.OrderedDict({"": {"version": 1}})}
    assert_same(named_tensors(read_torch_file(save(saved))), arrays)


@pytest.mark.parametrize("dtype", [*writer.STORAGES])
def test_types_of_numbers(save, rng, dtype):
    dtype = np.dtype(jnp.bfloat16 if dtype == "bfloat16" else dtype)
    array = rng.integers(0, 2, (2, 3)).astype(dtype)
    assert_same(
        named_tensors(read_torch_file(save({"a": writer.tensor(array)}))), {"a": array}
    )


def test_tensors_may_be_views_of_one_storage(save):
    numbers = Stored(np.arange(12, dtype=np.float32))
    saved = {
        "turned": writer.of_storage(numbers, 0, (3, 4), (1, 3)),
        "column": writer.of_storage(numbers, 1, (4,), (3,)),
        "last": writer.of_storage(numbers, 11, ()),
        "none": writer.of_storage(numbers, 12, (0, 4)),
    }
    found = named_tensors(read_torch_file(save(saved)))
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    expected = {"turned": table.T, "column": table[:, 1], "last": np.float32(11)}
    assert_same(found, expected | {"none": np.zeros((0, 4), np.float32)})
    assert np.shares_memory(found["turned"], found["column"])
    with pytest.raises(ValueError, match="read-only"):
        found["turned"][0] = 0


def test_storages_of_old_versions_may_be_views_themselves(tmp_path):
    numbers = np.arange(12, dtype=np.float32)
    saved = {
        "all": writer.of_storage(Stored(numbers), 0, (12,)),
        "part": writer.of_storage(Stored(numbers, ("7", 4, 6)), 1, (5,)),
    }
    path = tmp_path / "checkpoint.t7"
    path.write_bytes(writer.legacy(saved))
    assert_same(
        named_tensors(read_torch_file(path)), {"all": numbers, "part": numbers[5:10]}
    )
    saved["part"] = writer.of_storage(Stored(numbers, ("7", 4, 6)), 1, (6,))
    path.write_bytes(writer.legacy(saved))
    with pytest.raises(InputError, match="within the 6 numbers"):
        named_tensors(read_torch_file(path))


OUTSIDE = {
    "too many": (0, (13,), (1,)),
    "too late": (12, (1,), (1,)),
    "far": (10**15 // 4, (1,), (1,)),
    "strides": (0, (3, 2), (5, 2)),
    "repeated": (0, (5, 4), (0, 1)),
    "huge": (0, (10**12, 10**12), (0, 0)),
    "fewer strides": (0, (3, 4), (1,)),
    "negative": (11, (3,), (-1,)),
    "negative offset": (-1, (3,), (1,)),
    "beyond": (0, (2**70,), (1,)),
    "text": ("0", (3,), (1,)),
    "fraction": (0, (3.0,), (1,)),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_a_tensor_outside_its_storage_is_refused(save, case):
    numbers = Stored(np.arange(12, dtype=np.float32))
    path = save({"a": writer.of_storage(numbers, *OUTSIDE[case])})
    with pytest.raises(InputError, match=r"does not lie within|damaged"):
        named_tensors(read_torch_file(path))


def test_a_storage_of_unknown_numbers_is_refused(save):
    numbers = Stored(np.zeros(3, np.float32), kind="QInt8Storage")
    with pytest.raises(
        InputError, match=r"in torch\.QInt8Storage, which is not one of F"
    ):
        read_torch_file(save({"a": writer.of_storage(numbers, 0, (3,))}))


@pytest.mark.parametrize("kind", writer.FORMATS)
def test_a_file_cut_anywhere_is_refused(tmp_path, arrays, kind):
    whole = writer.FORMATS[kind]({"net": writer.module(arrays)})
    path = tmp_path / "cut.t7"
    for length in [*range(0, len(whole) - 1, 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut\.t7: it is (cut|not a file)"):
            read_torch_file(path)
    path.write_bytes(whole)
    assert_same(named_tensors(read_torch_file(path)), arrays)


def test_a_flipped_bit_in_an_archive_is_found(tmp_path, arrays):
    whole = writer.archive({"net": writer.module(arrays)})
    at = whole.index(arrays["conv1.weight"].tobytes())
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(InputError, match="damaged: Bad CRC-32"):
        read_torch_file(path)


def test_any_damage_ends_in_an_input_error(tmp_path, rng, arrays):
    """Or in a file that can be read: no other error, and no endless work."""
    path, refused = tmp_path / "damaged.t7", 0
    for kind in writer.FORMATS:
        whole = writer.FORMATS[kind]({"net": writer.module(arrays), "acc": 1.5})
        for _ in range(300):
            data = np.frombuffer(whole, np.uint8).copy()
            data[rng.integers(0, len(data), 3)] = rng.integers(0, 256, 3)
            path.write_bytes(data.tobytes())
            try:
                named_tensors(read_torch_file(path))
            except InputError:
                refused += 1
    assert refused > 300


NOT_FILES = {
    b"": "not a file of torch.save",
    b"hello": "not a file of torch.save",
    b"\x80": "cut short",
    damaged({"conv1.weight": 0}): "a pickle, but not a file",
    damaged(MARK, 1000): "another version of the format than 1001",
    damaged(MARK, 1001, {"little_endian": False}): "not little-endian",
    damaged(MARK, 1001, SYSTEM, {}, ["1"]): "lists other storages",
    damaged(MARK, 1001, SYSTEM, {}, [["1"]]): "keys of storages are not a list",
    damaged(MARK, 1001, SYSTEM, {}, 3): "keys of storages are not a list",
    writer.archive({}, byteorder=b"big"): "big-endian",
    writer.archive({}).replace(b"data.pkl", b"tada.pkl"): "not one of torch.save",
    writer.archive({"a": writer.tensor(np.zeros(3))}, **{"data/0": b"12"}): (
        "2 bytes, not 24"
    ),
}


@pytest.mark.parametrize("data", NOT_FILES, ids=[*NOT_FILES.values()])
def test_other_files_are_refused(tmp_path, data):
    path = tmp_path / "weights.bin"
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"weights.bin: it.*{NOT_FILES[data]}"):
        read_torch_file(path)


def test_a_compressed_archive_is_refused(tmp_path):
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("a/data.pkl", pickle.dumps({}) + bytes(10**6))
    with pytest.raises(InputError, match="compressed"):
        read_torch_file(path)


def test_tensors_of_safetensors_are_read_only():
    """Those of safetensors itself are not."""
    data = safetensors.numpy.save({"a": np.zeros(3), "b": np.zeros((0, 2))})
    tensors = parse_safetensors(data)
    assert {name: x.shape for name, x in tensors.items()} == {"a": (3,), "b": (0, 2)}
    assert not any(x.flags.writeable for x in tensors.values())


@pytest.mark.parametrize("name", ["missing.t7", ""])
def test_a_missing_file_or_a_folder_is_no_file(tmp_path, name):
    with pytest.raises(MissingFileError, match=f"no file {tmp_path / name}"):
        read_torch_file(tmp_path / name)


@pytest.mark.parametrize("value", [None, [1], 3, "text"])
def test_what_holds_no_network_is_refused(value):
    with pytest.raises(InputError, match="neither a state dict nor a module"):
        named_tensors(value)


def test_a_module_in_itself_is_refused():
    inner = Record("a.B", state={"_modules": {}})
    inner.state["_modules"]["self"] = inner
    with pytest.raises(InputError, match="module self appears twice"):
        named_tensors(inner)


ATTRIBUTES = [None, 3, {}, {"_parameters": 1}, {"_modules": {"a": 2}}, ({}, {})]


@pytest.mark.parametrize("state", ATTRIBUTES, ids=str)
def test_a_record_of_no_module_has_no_tensors(state):
    assert named_tensors(Record("a.B", state=state)) == {}


def test_a_checkpoint_that_holds_itself_ends():
    value: dict = {"epoch": 1}
    value["model"] = value
    assert named_tensors(value) == {"epoch": 1, "model": value}
    assert named_tensors({"net": {}}) == {}
