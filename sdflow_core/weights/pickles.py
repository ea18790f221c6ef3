"""Pickles read as data, by an interpreter that imports nothing and calls nothing that a file names.

Python's `pickle` finds a class by its name and calls it. Here a name is a key of a table or it is the end of
the reading; what it stands for was written in this project. Objects of NVIDIA's pickles become inert
`Record`s: the source text that these files carry is dropped unread.

The opcodes are those of protocols 2 to 5 (`pickletools` describes them). The text opcodes of protocols 0 and
1 belong to no family of weight files and are refused, like everything that would need a class of the file.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

from sdflow_core.weights.bounds import Budget, refused, shown

__all__ = ["Builder", "Late", "Name", "PickleReader", "Record"]

Builder = Callable[[tuple[Any, ...]], Any]

_LINE = 512  # characters of a name that a file may ask for
_KEY = 2**31


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that a file asks for, known to us by name only."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Record:
    """An object of a file as plain data.

    Attributes:
        module: Module of its class, a name only.
        name: Its class.
        args: What it would have been made with.
        state: Its attributes.
    """

    module: str
    name: str
    args: tuple[Any, ...] = ()
    state: dict[str, Any] = field(default_factory=dict[str, Any])


class Late(ABC):
    """A value that is complete only after the file has given it a state, such as a numpy array."""

    __slots__ = ()

    @abstractmethod
    def set(self, state: Any) -> None:
        """Take the state."""

    @abstractmethod
    def value(self) -> Any:
        """What it became."""


class PickleReader:
    """One pickle in a piece of memory.

    Args:
        data: The bytes; what follows the pickle is left alone.
        budget: What the file may still use.
        builders: What each known name makes of its arguments. A name that is not here ends the reading.
        persistent: What a persistent id stands for (tensors of torch); None refuses them.
    """

    def __init__(
        self,
        data: memoryview,
        budget: Budget,
        builders: Mapping[tuple[str, str], Builder],
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.data, self.budget, self.builders, self.persistent = data, budget, builders, persistent
        self.at = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks under the open marks
        self.memo: dict[int, Any] = {}

    def read(self) -> Any:
        """The value of the pickle; `at` is then the position behind it.

        Raises:
            ContractError: Damaged, too large, or more than data.
        """
        data, end, handlers, budget = self.data, len(self.data), _HANDLERS, self.budget
        try:
            while True:
                if self.at >= end:
                    self.refuse("the pickle ends in the middle")
                code = data[self.at]
                self.at += 1
                budget.opcodes -= 1
                if budget.opcodes < 0:
                    self.refuse("the pickle has more instructions than any weight file needs")
                if code == 0x2E:  # STOP
                    return self.stack.pop()
                handler = handlers.get(code)
                if handler is None:
                    self.refuse(
                        f"the pickle has the instruction {shown(bytes([code]))} at byte {self.at - 1}, "
                        "which no known weight file has"
                    )
                handler(self)
        except (IndexError, KeyError, struct.error, UnicodeDecodeError, OverflowError) as error:
            self.refuse(f"the pickle is damaged at byte {self.at} ({type(error).__name__})", error)

    def refuse(self, reason: str, cause: BaseException | None = None, *, todo: str | None = None) -> NoReturn:
        """End the reading."""
        raise refused(self.budget.where, reason, todo=todo) from cause

    def take(self, size: int) -> memoryview:
        """The next bytes, not copied."""
        if size > len(self.data) - self.at:
            self.refuse(
                f"the pickle declares {size} bytes where {len(self.data) - self.at} are left",
                todo="fetch the file again if it should be sound: it may be truncated",
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: str) -> int:
        """The next fixed-width number."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, size: int, encoding: str = "utf-8") -> str:
        """The next string."""
        piece = self.take(size)
        self.budget.spend("text", size)
        return str(piece, encoding, "surrogatepass" if encoding == "utf-8" else "strict")

    def line(self) -> str:
        """Text up to the end of a line."""
        piece = bytes(self.data[self.at : self.at + _LINE])
        size = piece.find(b"\n")
        if size < 0:
            self.refuse("the pickle asks for a name that never ends")
        self.at += size + 1
        return piece[:size].decode("utf-8")

    def group(self) -> list[Any]:
        """The values since the last mark."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def name(self, module: Any, name: Any) -> Name:
        """A name that the tables know, and no other."""
        if not isinstance(module, str) or not isinstance(name, str):
            self.refuse("the pickle asks for a name that is no text")
        if (module, name) not in self.builders:
            self.refuse(
                f"the pickle asks for {shown(module)[1:-1]}.{shown(name)[1:-1]}, "
                "which is neither a tensor nor a plain value"
            )
        return Name(module, name)

    def call(self, function: Any, args: Any) -> Any:
        """What one of our builders makes."""
        if not isinstance(function, Name):
            self.refuse(f"the pickle calls {shown(function)}")
        if not isinstance(args, tuple):
            self.refuse(f"the pickle calls {function} without a tuple of arguments")
        try:
            return self.builders[function.module, function.name](cast(tuple[Any, ...], args))
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            self.refuse(f"the pickle gives {function} arguments that do not fit", error)

    def key(self, value: Any) -> Any:
        """A key of a dict. Only kinds whose hashes a file cannot choose to collide."""
        if isinstance(value, str | bool) or value is None or (isinstance(value, int) and abs(value) < _KEY):
            return value
        self.refuse(f"the pickle has {shown(value)} as a key")

    def pairs(self, target: Any, values: list[Any]) -> None:
        """Put keys and values into a dict."""
        if not isinstance(target, dict) or len(values) % 2:
            self.refuse(f"the pickle sets items of {shown(target)}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[self.key(key)] = value

    def extend(self, target: Any, values: list[Any]) -> None:
        """Put values into a list; sets are lists here, in the order of the file."""
        if not isinstance(target, list):
            self.refuse(f"the pickle appends to {shown(target)}")
        cast(list[Any], target).extend(values)

    def build(self, target: Any, state: Any) -> None:
        """Give an object its state, as data."""
        if isinstance(target, Late):
            target.set(state)
        elif isinstance(target, Record):
            if not isinstance(state, dict):
                self.refuse(f"the pickle gives {shown(target.name)} a state that is no dict")
            target.state = cast(dict[str, Any], state)
        elif not isinstance(target, dict):  # attributes of a dict, such as `_metadata`, are no weights
            self.refuse(f"the pickle gives a state to {shown(target)}")


Handler = Callable[[PickleReader], object]  # what it gives is not looked at


def _push(value: Callable[[PickleReader], Any]) -> Handler:
    def handle(reader: PickleReader) -> None:
        made = value(reader)  # first: it may replace the stack
        reader.stack.append(made)

    return handle


def _tuple_of(count: int) -> Handler:
    def handle(reader: PickleReader) -> None:
        values = [reader.stack.pop() for _ in range(count)]
        reader.stack.append(tuple(reversed(values)))

    return handle


def _mark(reader: PickleReader) -> None:
    reader.below.append(reader.stack)
    reader.stack = []


def _long(reader: PickleReader) -> int:
    size = reader.number("<B")
    if size > 16:
        reader.refuse("the pickle has a whole number of more than 128 bits")
    return int.from_bytes(reader.take(size), "little", signed=True)


def _dict(reader: PickleReader) -> dict[Any, Any]:
    values = reader.group()
    made: dict[Any, Any] = {}
    reader.pairs(made, values)
    return made


def _setitem(reader: PickleReader) -> None:
    value, key = reader.stack.pop(), reader.stack.pop()
    reader.pairs(reader.stack[-1], [key, value])


def _setitems(reader: PickleReader) -> None:
    values = reader.group()
    reader.pairs(reader.stack[-1], values)


def _append(reader: PickleReader) -> None:
    value = reader.stack.pop()
    reader.extend(reader.stack[-1], [value])


def _appends(reader: PickleReader) -> None:
    values = reader.group()
    reader.extend(reader.stack[-1], values)


def _build(reader: PickleReader) -> None:
    state = reader.stack.pop()
    reader.build(reader.stack[-1], state)


def _two_names(reader: PickleReader) -> Name:
    name, module = reader.stack.pop(), reader.stack.pop()
    return reader.name(module, name)


def _call(reader: PickleReader) -> Any:
    args, function = reader.stack.pop(), reader.stack.pop()
    return reader.call(function, args)


def _persistent(reader: PickleReader) -> Any:
    if reader.persistent is None:
        reader.refuse("the pickle refers to data outside itself")
    return reader.persistent(reader.stack.pop())


def _memoize(reader: PickleReader) -> None:
    reader.memo[len(reader.memo)] = reader.stack[-1]


def _put(form: str) -> Handler:
    def handle(reader: PickleReader) -> None:
        reader.memo[reader.number(form)] = reader.stack[-1]

    return handle


def _protocol(reader: PickleReader) -> None:
    if (protocol := reader.number("<B")) > 5:
        reader.refuse(f"a pickle of protocol {protocol}")


_HANDLERS: dict[int, Handler] = {
    0x80: _protocol,
    0x95: lambda r: r.take(8),  # FRAME: a hint for streams
    0x28: _mark,
    0x30: lambda r: r.stack.pop(),  # POP
    0x31: lambda r: r.group(),  # POP_MARK
    0x32: _push(lambda r: r.stack[-1]),  # DUP
    0x4E: _push(lambda r: None),
    0x88: _push(lambda r: True),
    0x89: _push(lambda r: False),
    0x4A: _push(lambda r: r.number("<i")),
    0x4B: _push(lambda r: r.number("<B")),
    0x4D: _push(lambda r: r.number("<H")),
    0x8A: _push(_long),
    0x47: _push(lambda r: r.number(">d")),
    0x54: _push(lambda r: r.text(r.number("<I"), "latin-1")),  # strings of Python 2
    0x55: _push(lambda r: r.text(r.number("<B"), "latin-1")),
    0x58: _push(lambda r: r.text(r.number("<I"))),
    0x8C: _push(lambda r: r.text(r.number("<B"))),
    0x8D: _push(lambda r: r.text(r.number("<Q"))),
    0x42: _push(lambda r: r.take(r.number("<I"))),
    0x43: _push(lambda r: r.take(r.number("<B"))),
    0x8E: _push(lambda r: r.take(r.number("<Q"))),
    0x96: _push(lambda r: r.take(r.number("<Q"))),  # BYTEARRAY8
    0x5D: _push(lambda r: []),
    0x7D: _push(lambda r: {}),
    0x29: _push(lambda r: ()),
    0x8F: _push(lambda r: []),  # EMPTY_SET
    0x91: _push(lambda r: r.group()),  # FROZENSET
    0x6C: _push(lambda r: r.group()),  # LIST
    0x64: _push(_dict),
    0x74: _push(lambda r: tuple(r.group())),
    0x85: _tuple_of(1),
    0x86: _tuple_of(2),
    0x87: _tuple_of(3),
    0x61: _append,
    0x65: _appends,
    0x90: _appends,  # ADDITEMS
    0x73: _setitem,
    0x75: _setitems,
    0x62: _build,
    0x63: _push(lambda r: r.name(r.line(), r.line())),
    0x93: _push(_two_names),
    0x52: _push(_call),  # REDUCE
    0x81: _push(_call),  # NEWOBJ
    0x51: _push(_persistent),
    0x94: _memoize,
    0x71: _put("<B"),
    0x72: _put("<I"),
    0x68: _push(lambda r: r.memo[r.number("<B")]),
    0x6A: _push(lambda r: r.memo[r.number("<I")]),
}
