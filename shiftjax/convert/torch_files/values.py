"""Values of a PyTorch pickle: tensors, and inert stand-ins for other objects."""

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
"""Dtypes by the class of the storage, without the ending "Storage"."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A reference to a class or function, which is never imported.

    Attributes:
      path: module and name, e.g. "torch.nn.modules.conv.Conv2d".
    """

    path: str


@dataclasses.dataclass(eq=False)
class Record:
    """The saved data of an object of any class, without behavior.

    Attributes:
      path: module and name of the class.
      arguments: arguments with which the class would be called.
      state: the object's state, usually a dict of its attributes.
    """

    path: str
    arguments: tuple[Any, ...] = ()
    state: Any = None


@dataclasses.dataclass(eq=False)
class Storage:
    """A one-dimensional array of numbers, stored outside the pickle.

    Attributes:
      dtype: dtype of the numbers.
      size: number of numbers.
      data: their bytes; None before they are read.
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
    """A contiguous part of a storage.

    Attributes:
      storage: the storage.
      start: index of the first number.
      stop: index after the last number.
    """

    storage: Storage
    start: int
    stop: int


@dataclasses.dataclass(eq=False)
class Tensor:
    """A view of a storage, or of a part of it.

    Attributes:
      part: the numbers that the tensor may use.
      offset: index of the first number within the part.
      shape: size of each axis.
      strides: distance between neighbors along each axis, in numbers.
    """

    part: Part
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """Returns the tensor as a read-only view of its storage's bytes.

        Raises:
          InputError: if the view reaches outside its part, or has more numbers than it.

        Example:
          >>> numbers = Storage(DTYPES["Char"], 6, bytes(range(6)))
          >>> Tensor(Part(numbers, 0, 6), 1, (2, 2), (3, 1)).array().tolist()
          [[1, 2], [4, 5]]
        """
        storage = self.part.storage
        if storage.data is None:
            raise InputError("a tensor refers to a storage without numbers")
        size = storage.dtype.itemsize
        try:
            if math.prod(self.shape) > self.part.stop - self.part.start:
                raise ValueError("some numbers would be used twice")
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
