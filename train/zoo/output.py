"""The output of a run of the zoo, in a file of its folder or its place in a store."""

import tempfile

from train import files
from train.zoo.entries import Root


class Output:
    """The file to which a run prints, at the end of what earlier starts printed.

    Args:
      path: the file. In a store, which cannot append, it is written by `close`.

    Attributes:
      file: a local file.
    """

    def __init__(self, path: Root) -> None:
        self.path = path
        if files.in_store(path):
            self.file = tempfile.TemporaryFile("w+b")  # noqa: SIM115
        else:
            self.file = open(path, "a+b")  # noqa: SIM115

    def close(self) -> str:
        """Closes the file, and returns the last line."""
        with self.file:
            self.file.seek(0)
            data = self.file.read()
        if files.in_store(self.path):
            earlier = self.path.read_bytes() if self.path.exists() else b""
            files.write(files.folder(self.path), earlier + data)
        return (data.decode(errors="replace").strip().splitlines() or [""])[-1]
