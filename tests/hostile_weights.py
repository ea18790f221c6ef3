"""Weight files that want to run something; those that want all memory are in `hostile_weight_sizes`.

Every builder gives the bytes of one file and a pattern of the reason for which it must be refused. The files
that carry code would write `canary` when that code runs.
"""

from __future__ import annotations

import builtins
import collections
import functools
import io
import json
import operator
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests import weight_makers as make

Built = tuple[bytes, str]
Builder = Callable[[Path], Built]
HOSTILE: dict[str, Builder] = {}


def hostile(build: Builder) -> Builder:
    HOSTILE[build.__name__.replace("_", "-")] = build
    return build


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def shell(canary: Path) -> Call:
    return Call(os.system, f"echo ran > {canary}")


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def zipped(members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def torch_zip(program: bytes, **more: bytes) -> bytes:
    names = {name.replace("__", "/"): data for name, data in more.items()}
    members = {"data.pkl": program, "byteorder": b"little", "version": b"3\n", **names}
    return zipped({f"archive/{name}": data for name, data in members.items()})


def tensor_program(count: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """A state dict with one tensor `a` over the storage 0 of so many floats."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    head = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n("
    tail = b"\x89ccollections\nOrderedDict\n)RtRs."
    return head + storage + number(count) + b"tQ" + number(offset) + several(shape) + several(strides) + tail


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def several(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def safetensors(header: Any, data: bytes = b"", declared: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if declared is None else declared) + text + data


@hostile
def os_system(canary: Path) -> Built:
    return pickle.dumps(shell(canary), 2), r"asks for posix\.system"


@hostile
def os_system_protocol_0(canary: Path) -> Built:
    return b"cos\nsystem\n(S'echo ran > " + str(canary).encode() + b"'\ntR.", "protocol 0"


@hostile
def os_system_protocol_5(canary: Path) -> Built:
    return pickle.dumps(shell(canary), 5), r"asks for posix\.system"


@hostile
def evaluated(canary: Path) -> Built:
    return pickle.dumps(Call(eval, f"open({str(canary)!r}, 'w')")), r"asks for builtins\.eval"


@hostile
def executed(canary: Path) -> Built:
    return pickle.dumps(Call(exec, f"open({str(canary)!r}, 'w')"), 2), r"asks for __builtin__\.exec"


@hostile
def opened(canary: Path) -> Built:
    return pickle.dumps(Call(open, str(canary), "w")), r"asks for _?io\.open"


@hostile
def partial_gadget(canary: Path) -> Built:
    return pickle.dumps(
        Call(functools.partial(os.system, f"echo > {canary}"))
    ), r"asks for functools\.partial"


@hostile
def attribute_gadget(canary: Path) -> Built:
    return pickle.dumps(Call(operator.methodcaller("write_text", "ran"), canary)), r"asks for operator"


@hostile
def getattr_gadget(canary: Path) -> Built:
    return pickle.dumps(
        Call(getattr, Call(builtins.__import__, "os"), "system")
    ), r"asks for builtins\.getattr"


@hostile
def dotted_name(canary: Path) -> Built:
    program = b"\x80\x04\x8c\x0ctorch._utils\x8c\x12_rebuild_tensor_v2.__globals__.get\x93)R."
    program = program.replace(b"\x8c\x12", b"\x8c\x22")
    return program, r"_rebuild_tensor_v2\.__globals__"


@hostile
def rebuilt_by_copyreg(canary: Path) -> Built:
    program = b"\x80\x02ccopy_reg\n_reconstructor\n(cos\n_wrap_close\nc__builtin__\nobject\nNtR."
    return program, r"asks for copy_reg\._reconstructor"


@hostile
def torch_load_inside(canary: Path) -> Built:
    return pickle.dumps(Call(torch.load, "/etc/hostname")), r"asks for torch\.serialization\.load"


@hostile
def numpy_load_inside(canary: Path) -> Built:
    return pickle.dumps(Call(np.load, str(canary))), r"asks for numpy"


@hostile
def zip_with_os_system(canary: Path) -> Built:
    return saved({"g_ema": {"a": torch.zeros(3)}, "x": shell(canary)}), r"asks for posix\.system"


@hostile
def zip_with_code_deep_inside(canary: Path) -> Built:
    inner: Any = shell(canary)
    for _ in range(20):
        inner = collections.OrderedDict(a=[(inner,)])
    return saved({"state_dict": {"a": torch.zeros(3)}, "opts": inner}), r"asks for posix\.system"


@hostile
def whole_module(canary: Path) -> Built:
    return saved(torch.nn.Linear(2, 2)), r"asks for torch\.nn\.modules\.linear\.Linear"


@hostile
def legacy_with_os_system(canary: Path) -> Built:
    data = saved({"a": torch.zeros(3), "x": shell(canary)}, _use_new_zipfile_serialization=False)
    return data, r"asks for posix\.system"


@hostile
def legacy_with_code_as_keys(canary: Path) -> Built:
    """The last of its pickles, where the keys of the storages should be."""
    data = saved({"a": torch.zeros(3)}, _use_new_zipfile_serialization=False)
    at = data.rindex(b"\x80\x02]")
    return data[:at] + pickle.dumps(shell(canary), 2), r"asks for posix\.system"


@hostile
def code_in_the_storage_of_a_pickle(canary: Path) -> Built:
    inside = saved(shell(canary), _use_new_zipfile_serialization=False)
    return pickle.dumps(Call(torch.storage._load_from_bytes, inside)), r"asks for posix\.system"


@hostile
def storages_in_storages(canary: Path) -> Built:
    inner = Call(torch.storage._load_from_bytes, saved(shell(canary), _use_new_zipfile_serialization=False))
    inside = saved(inner, _use_new_zipfile_serialization=False)
    return pickle.dumps(Call(torch.storage._load_from_bytes, inside)), "numbers inside of numbers"


@hostile
def a_zip_in_the_storage_of_a_pickle(canary: Path) -> Built:
    inside = saved(shell(canary))
    return pickle.dumps(Call(torch.storage._load_from_bytes, inside)), "instruction b'P'|is damaged"


@hostile
def persistent_object_that_is_no_class(canary: Path) -> Built:
    with make.nvidia_modules():
        network = make.persistent_network({"a": torch.zeros(1)}, source=f"open({str(canary)!r}, 'w')")
        data = pickle.dumps({"G_ema": network}).replace(b"\x8c\x05class\x94", b"\x8c\x05clasp\x94")
    return data, "without class and state"


@hostile
def persistent_object_of_a_number(canary: Path) -> Built:
    return b"\x80\x02ctorch_utils.persistence\n_reconstruct_persistent_obj\nK\x05\x85R.", "do not fit"


@hostile
def new_object(canary: Path) -> Built:
    return b"\x80\x02csubprocess\nPopen\n(X\x02\x00\x00\x00lst\x81.", r"asks for subprocess\.Popen"


@hostile
def new_object_with_names(canary: Path) -> Built:
    return b"\x80\x04\x8c\x0bcollections\x8c\x0bOrderedDict\x93)}\x92.", "instruction b.\\\\x92"


@hostile
def instance_opcode(canary: Path) -> Built:
    return b"\x80\x02(X\x02\x00\x00\x00idios\nsystem\n.", "instruction b'i'"


@hostile
def object_opcode(canary: Path) -> Built:
    return b"\x80\x02(ccollections\nOrderedDict\no.", "instruction b'o'"


@hostile
def extension_opcode(canary: Path) -> Built:
    return b"\x80\x02}0\x82\x01N0N.", "instruction b.\\\\x82"


@hostile
def state_for_a_list(canary: Path) -> Built:
    return b"\x80\x02]}X\x0c\x00\x00\x00__setstate__Nsb.", "gives a state to list"


@hostile
def npy_with_a_pickle(canary: Path) -> Built:
    buffer = io.BytesIO()
    np.save(buffer, np.array([shell(canary)], dtype=object), allow_pickle=True)
    return buffer.getvalue(), "pickle inside of numpy"


@hostile
def npz_with_a_pickle(canary: Path) -> Built:
    buffer = io.BytesIO()
    np.savez(buffer, w=np.zeros(3), x=np.array([shell(canary)], dtype=object))
    return buffer.getvalue(), "pickle inside of numpy"


@hostile
def array_of_objects_in_a_pickle(canary: Path) -> Built:
    return pickle.dumps({"a": np.array([1, "x", None], dtype=object)}), "array of"


@hostile
def npy_with_a_program_as_header(canary: Path) -> Built:
    return npy(f"{{'descr': open({str(canary)!r}, 'w'), 'shape': (1,)}}"), "unknown numpy header"


@hostile
def torchscript(canary: Path) -> Built:
    members = {"m/data.pkl": b"\x80\x02}.", "m/constants.pkl": b"\x80\x02).", "m/code/x.py": b"import os"}
    return zipped(members), "TorchScript"
