"""An unpickler for PyTorch files that runs no code.

Python's own unpickler calls whatever a pickle names. This one imports nothing and calls
nothing. The standard library's `pickletools` splits the pickle into instructions, and
each instruction acts on inert values. A reference to a class or function stays a
`Name`. An object of any class becomes a `Record` of its saved state. Tensors are views
of storages, whose numbers lie outside the pickle. A pickle with any other call than
those that rebuild tensors and containers (`calls.CALLS`) is refused.

Text of Python 2 is decoded as latin-1.
"""

import pickletools
import struct
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

from shiftjax.convert.torch_files.calls import CALLS, RECORDED, fill, instance, part
from shiftjax.convert.torch_files.values import Name, Record, Storage, Tensor
from shiftjax.errors import InputError


def load_torch_pickle(
    stream: BinaryIO, storages: dict[str, Storage] | None = None
) -> Any:
    """Reads one pickle.

    Args:
      stream: a stream at the start of the pickle; it is left at the end of the pickle.
      storages: a dict that receives the storages that the pickle refers to, by key and
        without their numbers; None if the pickle must not refer to any.

    Returns:
      The value, of built-in types, `Tensor`, `Record` and `Name`. OrderedDicts become
      dicts, and sets of protocol 4 become lists.

    Raises:
      InputError: if it is damaged, or contains a call that is not known to be harmless.

    Example:
      >>> import io, pickle
      >>> load_torch_pickle(io.BytesIO(pickle.dumps({"epoch": 3, "function": print})))
      {'epoch': 3, 'function': Name(path='builtins.print')}
    """
    machine = _Machine(storages)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.step(opcode.name, argument)
        return machine.pop()
    except InputError:
        raise
    except (ValueError, TypeError, LookupError, OverflowError, struct.error) as error:
        raise InputError(f"it is cut short or damaged: {str(error)[:99]}") from error


_MARK = object()
_ARGUMENT = frozenset(  # instructions that push their argument
    [
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
    ]
)
_NEW: dict[str, Callable[[], Any]] = {
    "MARK": lambda: _MARK,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARKED: dict[str, Callable[[list[Any]], Any]] = {
    "TUPLE": tuple,
    "LIST": list,
    "DICT": lambda values: fill({}, values),
    "FROZENSET": list,
}


class _Machine:
    """The stack and the memo of a pickle, and its instructions."""

    def __init__(self, storages: dict[str, Storage] | None) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Runs one instruction on inert values.

        Args:
          name: name of the instruction in `pickletools`.
          argument: its argument, or None.

        Raises:
          InputError: if PyTorch never uses it, or it is a call that is refused.
          ValueError: if the stack does not fit it.
        """
        if name in _ARGUMENT:
            self.stack.append(argument)
        elif name in _NEW:
            self.stack.append(_NEW[name]())
        elif name in _TUPLES:
            self.stack.append(tuple(self.take(_TUPLES[name])))
        elif name in _MARKED:
            self.stack.append(_MARKED[name](self.marked()))
        elif name in _STEPS:
            _STEPS[name](self, argument)
        else:
            raise InputError(
                f"it has the pickle instruction {name}, which PyTorch never writes"
            )

    def take(self, count: int) -> list[Any]:
        """Removes the last values from the stack and returns them."""
        values = self.stack[-count:]
        if len(values) < count or any(value is _MARK for value in values):
            raise ValueError("values are missing")
        del self.stack[-count:]
        return values

    def pop(self) -> Any:
        """Removes the last value from the stack and returns it."""
        return self.take(1)[0]

    def top(self) -> Any:
        """Returns the last value of the stack without removing it."""
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("values are missing")
        return self.stack[-1]

    def marked(self) -> list[Any]:
        """Removes the last mark and the values after it, and returns the values."""
        at = len(self.stack) - 1
        while at >= 0 and self.stack[at] is not _MARK:
            at -= 1
        if at < 0:
            raise ValueError("a mark is missing")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def put(self, argument: int | None) -> None:
        """Stores the last value in the memo, under the given number or the next one."""
        self.memo[len(self.memo) if argument is None else argument] = self.top()

    def get(self, argument: int) -> None:
        """Pushes a value of the memo."""
        self.stack.append(self.memo[argument])

    def extend(self, values: list[Any]) -> None:
        """Appends values to the list on top of the stack.

        Those of a record, an object of a class like a list, are dropped.
        """
        if type(self.top()) is Record:
            return
        if type(self.top()) is not list:
            raise ValueError("values are appended to an object that is not a list")
        self.top().extend(values)

    def update(self, values: list[Any]) -> None:
        """Adds keys and values, in turns, to the dict on top of the stack.

        Those of a record, an object of a class like a dict, are dropped.
        """
        if type(self.top()) is Record:
            return
        fill(self.top(), values)

    def refer(self, argument: str) -> None:
        """Pushes a reference to a class or function, given as "module name"."""
        self.stack.append(Name(argument.replace(" ", ".", 1)))

    def refer_outside(self) -> None:
        """Pushes the storage, or the class of a module, of a persistent id."""
        kind, *details = self.pop()
        if kind == "module":
            self.stack.append(details[0])
        elif kind == "storage" and self.storages is not None:
            self.stack.append(part(self.storages, *details))
        else:
            raise ValueError("it refers to an object outside the file")

    def call(self, function: Any, arguments: Iterable[Any]) -> None:
        """Simulates a call.

        Raises:
          InputError: if the function is not an allowed one.
        """
        path = function.path if type(function) is Name else type(function).__name__
        if path in CALLS:
            self.stack.append(CALLS[path](*arguments))
        elif path in RECORDED:
            self.stack.append(Record(path, tuple(arguments)))
        else:
            raise InputError(
                f"it calls {path}, which is refused: no code of a file is run"
            )

    def create(self) -> None:
        """Creates the record of an object, without calling its class."""
        kind, arguments = self.take(2)
        self.stack.append(instance(kind))
        self.top().arguments = tuple(arguments)

    def create_marked(self, argument: str | None) -> None:
        """Creates an object of an old-style class of Python 2, which is a call."""
        values = self.marked()
        if argument is not None:
            values = [Name(argument.replace(" ", ".", 1)), *values]
        self.call(values[0], values[1:])

    def build(self) -> None:
        """Stores the state of a record; the state of tensors and dicts is dropped."""
        state = self.pop()
        if type(self.top()) is Record and self.top().state is None:
            self.top().state = state
        elif type(self.top()) not in (Tensor, dict):
            raise ValueError(
                "a state is set twice, or on a value that is not an object"
            )


_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, argument: None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("INST", "OBJ"), _Machine.create_marked),
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": lambda machine, _: machine.marked(),
    "DUP": lambda machine, _: machine.stack.append(machine.top()),
    "APPEND": lambda machine, _: machine.extend(machine.take(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.marked()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.marked()),
    "SETITEM": lambda machine, _: machine.update(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.marked()),
    "GLOBAL": _Machine.refer,
    "STACK_GLOBAL": lambda machine, _: machine.refer(" ".join(machine.take(2))),
    "NEWOBJ": lambda machine, _: machine.create(),
    "REDUCE": lambda machine, _: machine.call(*machine.take(2)),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.refer_outside(),
}
