"""Files are written whole or not at all; a failure is an InputError of one line."""

import pytest

from shiftjax import InputError
from shiftjax.files import write_atomically


def test_a_file_replaces_another(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"longer than the new content")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("folder", [False, True])
def test_what_cannot_be_written(tmp_path, folder):
    """Into a folder that does not exist, or in place of a folder."""
    path = tmp_path / "a" / "net.onnx"
    if folder:
        path.mkdir(parents=True)
    with pytest.raises(InputError, match=r"net\.onnx cannot be written: \w+"):
        write_atomically(path, b"new")
    assert [x for x in tmp_path.rglob("*") if x.is_file()] == []
