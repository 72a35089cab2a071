"""What a pickle of PyTorch's is read into: tensors, and inert stand-ins."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from shiftjax.errors import InputError

DTYPES = {
    "Float": np.dtype("<f4"),
    "Double": np.dtype("<f8"),
    "Half": np.dtype("<f2"),
    "BFloat16": np.dtype(jnp.bfloat16),
    "Long": np.dtype("<i8"),
    "Int": np.dtype("<i4"),
    "Short": np.dtype("<i2"),
    "Char": np.dtype("i1"),
    "Byte": np.dtype("u1"),
    "Bool": np.dtype("?"),
}
"""The type of a number by the class of its storage, less its ending "Storage"."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A class or function that a pickle refers to; it is never looked up.

    Attributes:
      path: its module and name, e.g. "torch.nn.modules.conv.Conv2d".
    """

    path: str


@dataclasses.dataclass(eq=False)
class Record:
    """What was saved of an object of any class: it has no behaviour.

    Attributes:
      path: module and name of its class.
      arguments: what its class would have been called with.
      state: what would have become its attributes.
    """

    path: str
    arguments: tuple[Any, ...] = ()
    state: Any = None


@dataclasses.dataclass(eq=False)
class Storage:
    """A run of numbers, which lies outside the pickle.

    Attributes:
      dtype: type of a number.
      size: how many there are.
      data: their bytes, once they are read.
    """

    dtype: np.dtype
    size: int
    data: bytes | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * self.dtype.itemsize


@dataclasses.dataclass(eq=False)
class Part:
    """Some of the numbers of a storage, from `start` to before `stop`."""

    storage: Storage
    start: int
    stop: int


@dataclasses.dataclass(eq=False)
class Tensor:
    """A view of a storage, or of a part of it.

    Attributes:
      part: the numbers that it may use.
      offset: which of them is its first.
      shape: its size in each axis.
      strides: distance between neighbours in each axis, in numbers.
    """

    part: Part
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """Returns the tensor as a read-only view of its storage's bytes.

        Raises:
          InputError: if it reaches outside the numbers that it may use.

        Example:
          >>> numbers = Storage(DTYPES["Char"], 6, bytes(range(6)))
          >>> Tensor(Part(numbers, 0, 6), 1, (2, 2), (3, 1)).array().tolist()
          [[1, 2], [4, 5]]
        """
        storage = self.part.storage
        if storage.data is None:
            raise InputError("a tensor has no numbers")
        size = storage.dtype.itemsize
        try:
            if math.prod(self.shape) > self.part.stop - self.part.start:
                raise ValueError("some numbers are there twice")
            return np.ndarray(
                self.shape,
                storage.dtype,
                memoryview(storage.data)[
                    self.part.start * size : self.part.stop * size
                ],
                self.offset * size,
                [size * stride for stride in self.strides],
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"a tensor of shape {self.shape} and strides {self.strides} does not "
                f"lie within the {self.part.stop - self.part.start} numbers it is in"
            ) from error
