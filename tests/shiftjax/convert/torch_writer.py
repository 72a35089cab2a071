"""Writes files as `torch.save` does, without PyTorch; with Python 2's text if asked."""

import collections
import dataclasses
import io
import pickle
import zipfile
from typing import Any

import numpy as np

STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


@dataclasses.dataclass(frozen=True)
class Global:
    """A class or function by name."""

    module: str
    name: str


@dataclasses.dataclass(eq=False)
class Call:
    """An object that is loaded by calling a function and setting a state."""

    function: Any
    arguments: Any
    state: Any = None


@dataclasses.dataclass(eq=False)
class Instance:
    """An object that is loaded by instantiating a class and setting a state.

    The class of a module is saved with its source.
    """

    kind: Global
    state: Any
    source: str | None = None


@dataclasses.dataclass(eq=False)
class Stored:
    """A storage, or the part of one that a view of old versions was."""

    numbers: np.ndarray
    view: tuple[str, int, int] | None = None
    module: str = "torch"
    kind: str | None = None


def tensor(array, **options):
    """A tensor as PyTorch >= 0.4 saves it."""
    return of_storage(Stored(np.ravel(array), **options), 0, array.shape)


def of_storage(stored, offset, shape, strides=None, function="_rebuild_tensor_v2"):
    """A view of a storage, contiguous by default."""
    if strides is None:
        strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    more = (False, collections.OrderedDict()) if function.endswith("v2") else ()
    arguments = stored, offset, tuple(shape), tuple(strides), *more
    return Call(Global("torch._utils", function), arguments)


def parameter(array):
    """A parameter as PyTorch >= 0.4.1 saves it."""
    arguments = tensor(array), True, collections.OrderedDict()
    return Call(Global("torch._utils", "_rebuild_parameter"), arguments)


def old_parameter(array):
    """A parameter as PyTorch 0.2 and 0.3 save it, on a GPU."""
    stored = Stored(np.ravel(array), module="torch.cuda")
    data = of_storage(stored, 0, array.shape, function="_rebuild_tensor")
    hooks = collections.OrderedDict()
    kind = Global("torch.nn.parameter", "Parameter")
    return Call(kind, (data,), (True, False, hooks))


def ordered(pairs):
    """An OrderedDict as Python 2 saves it."""
    return Call(Global("collections", "OrderedDict"), ([list(p) for p in pairs],))


def module(arrays, parameter=parameter, ordered=collections.OrderedDict):
    """A module with these arrays by their dotted names, with the usual attributes."""
    parameters, buffers, inner = [], [], {}
    for name, array in arrays.items():
        first, _, rest = name.partition(".")
        if rest:
            inner.setdefault(first, {})[rest] = array
        elif first.startswith(("running", "num")):
            buffers.append((first, tensor(array)))
        else:
            parameters.append((first, parameter(array)))
    backend = Global("torch.nn.backends.thnn", "_get_thnn_function_backend")
    state = {
        "_backend": Call(backend, ()),
        "_parameters": ordered([*parameters, ("absent", None)]),
        "_buffers": ordered(buffers),
        "_backward_hooks": ordered([]),
        "_modules": ordered(
            [(name, module(a, parameter, ordered)) for name, a in inner.items()]
        ),
        "int_nchw": Call(Global("torch", "Size"), ((128, 16, 32, 32),)),
        "training": True,
    }
    return Instance(Global("models.anything", "Block"), state, "class Block: ...")


class Pickler(pickle._Pickler):
    """Pickles the stand-ins above as what they stand for."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012 (as its base class has it)

    def __init__(self, file, python2=False, archive=False):
        super().__init__(file, protocol=2)
        self.archive, self.stored = archive, {}
        if python2:
            self.dispatch = self.dispatch | {str: Pickler.save_bytes}

    def persistent_id(self, value):
        if isinstance(value, Stored):
            self.stored.setdefault(id(value.numbers), value.numbers)
            key = f"{list(self.stored).index(id(value.numbers))}"
            name = value.kind or STORAGES[str(value.numbers.dtype)]
            kind = Global(value.module, name)
            reference = "storage", kind, key, "cuda:0", value.numbers.size
            return reference if self.archive else (*reference, value.view)
        if isinstance(value, tuple) and value and value[0] is Instance:
            return "module", value[1], "models/anything.py", value[2]
        return None

    def save_bytes(self, text):
        data = text.encode("latin-1")
        if len(data) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(data)]) + data)
        else:
            self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)

    def save_name(self, value):
        self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())

    def save_call(self, value):
        self.save(value.function)
        self.save(value.arguments)
        self.write(pickle.REDUCE)
        self.save_state(value.state)

    def save_instance(self, value):
        if value.source is None:
            self.save(value.kind)
        else:
            self.save((Instance, value.kind, value.source))
        self.save(())
        self.write(pickle.NEWOBJ)
        self.save_state(value.state)

    def save_state(self, state):
        if state is not None:
            self.save(state)
            self.write(pickle.BUILD)

    dispatch |= {Global: save_name, Call: save_call, Instance: save_instance}


def legacy(value, python2=False):
    """The bytes of a file of `torch.save` before version 1.6."""
    file = io.BytesIO()
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
    for head in (0x1950A86A20F9469CFC6C, 1001, system):
        Pickler(file, python2).dump(head)
    pickler = Pickler(file, python2)
    pickler.dump(value)
    Pickler(file, python2).dump([f"{i}" for i in range(len(pickler.stored))])
    for numbers in pickler.stored.values():
        file.write(numbers.size.to_bytes(8, "little") + numbers.tobytes())
    return file.getvalue()


def archive(value, **members):
    """The bytes of a file of `torch.save` since version 1.6."""
    file, root = io.BytesIO(), io.BytesIO()
    pickler = Pickler(root, archive=True)
    pickler.dump(value)
    contents = {"data.pkl": root.getvalue(), "byteorder": b"little"}
    for key, numbers in enumerate(pickler.stored.values()):
        contents[f"data/{key}"] = numbers.tobytes()
    with zipfile.ZipFile(file, "w") as target:
        for name, content in (contents | {"version": b"3\n"} | members).items():
            target.writestr(f"name/{name}", content)
    return file.getvalue()


FORMATS = {"legacy": legacy, "archive": archive}
