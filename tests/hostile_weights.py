"""Weight files that want to run something, to take all memory, or to be taken for what they are not.

Every builder gives the bytes of one file and a pattern of the reason for which it must be refused. The files that
carry code would write `canary` when that code runs.
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
import zlib
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


# --- code


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


# --- memory and time


@hostile
def ten_gigabytes_in_a_tensor(canary: Path) -> Built:
    count = 2_500_000_000
    return torch_zip(
        tensor_program(count, 0, (count,), (1,)), data__0=bytes(16)
    ), "declares 2500000000 numbers"


@hostile
def ten_gigabytes_by_a_stride_of_0(canary: Path) -> Built:
    program = tensor_program(4, 0, (2_500_000_000, 4), (0, 1))
    return torch_zip(program, data__0=bytes(16)), "more expanded"


@hostile
def many_tensors_over_one_storage(canary: Path) -> Built:
    count = 2**20
    one = tensor_program(count, 0, (count,), (1,))[2:-2]  # without protocol, SETITEM and STOP
    program = b"\x80\x02]" + (one.replace(b"}X\x01\x00\x00\x00a", b"", 1) + b"a") * 400 + b"."
    return torch_zip(program, data__0=bytes(4 * count)), "more tensors"


@hostile
def member_of_ten_gigabytes(canary: Path) -> Built:
    data = bytearray(torch_zip(tensor_program(4, 0, (4,), (1,)), data__0=bytes(16)))
    for at in (i for i in range(len(data) - 4) if data[i : i + 4] == b"PK\x01\x02"):
        data[at + 20 : at + 28] = struct.pack("<2L", 0xFFFFFFF0, 0xFFFFFFF0)
    return bytes(data), "more than the file has"


@hostile
def compressed_bomb(canary: Path) -> Built:
    program = tensor_program(2**28, 0, (2**28,), (1,))
    members = {"a/data.pkl": program, "a/data/0": bytes(2**26)}
    return zipped(members, zipfile.ZIP_DEFLATED), "is compressed"


@hostile
def npz_bomb(canary: Path) -> Built:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2500000000,), }")
    packed = deflate.compress(head) + deflate.flush()
    data = bytearray(zipped({"a.npy": packed}))
    at = data.index(b"PK\x01\x02")
    data[at + 10 : at + 12] = struct.pack("<H", 8)
    data[at + 24 : at + 28] = struct.pack("<L", 0xFFFFFFF0)
    return bytes(data), "arrays that declare 4294967280 bytes"


@hostile
def npz_shorter_than_it_says(canary: Path) -> Built:
    data = bytearray(zipped({"a.npy": npy("{}") * 20}, zipfile.ZIP_DEFLATED))
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<L", 400_000_000)
    return bytes(data), "unknown numpy header|shorter than it declares"


@hostile
def npy_of_ten_gigabytes(canary: Path) -> Built:
    return npy(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2500000000,), }", bytes(16)
    ), "declares 2500000000"


@hostile
def npy_header_of_four_gigabytes(canary: Path) -> Built:
    return b"\x93NUMPY\x02\x00" + struct.pack("<L", 0xFFFFFFF0) + bytes(
        64
    ), "numpy header that declares 4294967280"


@hostile
def safetensors_header_of_ten_gigabytes(canary: Path) -> Built:
    return safetensors(b"{}", declared=10**10), "header that declares 10000000000"


@hostile
def safetensors_of_ten_gigabytes(canary: Path) -> Built:
    entry = {"dtype": "F32", "shape": [2_500_000_000], "data_offsets": [0, 10_000_000_000]}
    return safetensors({"a": entry}, bytes(16)), "reaches outside of the 16 bytes"


@hostile
def safetensors_of_brackets(canary: Path) -> Built:
    return safetensors(b'{"a":' + b"[" * 1_000_000), "damaged safetensors header"


@hostile
def billion_laughs(canary: Path) -> Built:
    program = b"\x80\x02]q\x00" + b"".join(
        b"]q" + bytes([i + 1]) + b"(" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"e" for i in range(60)
    )
    return program + b".", "fill any memory"


@hostile
def itself(canary: Path) -> Built:
    return b"\x80\x02]q\x00h\x00a.", "contain themselves"


@hostile
def hundred_thousand_lists(canary: Path) -> Built:
    return b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "nested too deep"


@hostile
def chain_of_known_lists(canary: Path) -> Built:
    """Each list is only one deeper than one that was seen already."""
    links = b"".join(
        b"]r" + struct.pack("<I", i) + b"j" + struct.pack("<I", i - 1) + b"aa" for i in range(1, 5000)
    )
    return b"\x80\x02]]r\x00\x00\x00\x00a" + links + b".", "nested too deep"


@hostile
def a_million_instructions(canary: Path) -> Built:
    return b"\x80\x02" + b"N0" * 500_000 + b"N.", "more instructions"


@hostile
def text_of_ten_gigabytes(canary: Path) -> Built:
    return b"\x80\x04\x8d" + struct.pack("<Q", 10**10) + b"abc.", "declares 10000000000 bytes"


@hostile
def number_of_two_gigabytes(canary: Path) -> Built:
    return b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\xff.", "instruction b.\\\\x8b"


@hostile
def keys_that_collide(canary: Path) -> Built:
    step = 2**61 - 1  # every multiple of it has the hash 0
    keys = b"".join(
        b"\x8a\x0a" + (i * step).to_bytes(10, "little", signed=True) + b"N" for i in range(1, 20_000)
    )
    return b"\x80\x02}(" + keys + b"u.", "as a key"


@hostile
def the_same_long_set_again_and_again(canary: Path) -> Built:
    values = b"(" + b"N" * 50_000 + b"lq\x00"
    again = b"cbuiltins\nset\nh\x00\x85R0" * 2_000
    return b"\x80\x02" + values + again + b".", "more values"


@hostile
def the_same_text_encoded_again_and_again(canary: Path) -> Built:
    text = b"X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\x00"
    again = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
    return b"\x80\x02" + text + again * 5_000 + b".", "more copied"


# --- lies and damage


@hostile
def zip_slip(canary: Path) -> Built:
    members = {"archive/data.pkl": b"\x80\x02}.", f"../../../../../..{canary}": b"ran"}
    return zipped(members), "outside of its folder"


@hostile
def absolute_name(canary: Path) -> Built:
    return zipped({"archive/data.pkl": b"\x80\x02}.", str(canary): b"ran"}), "outside of its folder"


@hostile
def windows_name(canary: Path) -> Built:
    return zipped({"archive/data.pkl": b"\x80\x02}.", "..\\..\\x": b"ran"}), "outside of its folder"


@hostile
def name_twice(canary: Path) -> Built:
    data = torch_zip(b"\x80\x02}.", other__a=b"x", other__b=b"x")
    return data.replace(b"other/b", b"other/a"), "twice"


@hostile
def another_name_at_the_data(canary: Path) -> Built:
    data = torch_zip(b"\x80\x02}.", other__a=b"x")
    return data.replace(b"other/a", b"other/b", 1), "another name"


@hostile
def members_on_top_of_each_other(canary: Path) -> Built:
    data = bytearray(torch_zip(b"\x80\x02}.", data__0=bytes(64), data__1=bytes(64)))
    places = [i for i in range(len(data) - 4) if data[i : i + 4] == b"PK\x01\x02"]
    data[places[-2] + 20 : places[-2] + 28] = struct.pack("<2L", 128, 128)
    return bytes(data), "on top of each other"


@hostile
def truncated_zip(canary: Path) -> Built:
    return saved({"a": torch.zeros(1000)})[:-300], "truncated"


@hostile
def truncated_legacy(canary: Path) -> Built:
    return saved({"a": torch.zeros(1000)}, _use_new_zipfile_serialization=False)[:-300], "are left"


@hostile
def truncated_pickle(canary: Path) -> Built:
    return pickle.dumps({"a": list(range(100))})[:-50], "ends in the middle|are left"


@hostile
def encrypted_zip(canary: Path) -> Built:
    data = bytearray(torch_zip(b"\x80\x02}."))
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    return bytes(data), "encrypted"


@hostile
def storage_that_is_not_there(canary: Path) -> Built:
    return torch_zip(tensor_program(4, 0, (4,), (1,))), "are missing"


@hostile
def tensor_beyond_its_storage(canary: Path) -> Built:
    return torch_zip(tensor_program(4, 3, (4,), (1,)), data__0=bytes(16)), "reaches outside"


@hostile
def tensor_before_its_storage(canary: Path) -> Built:
    return torch_zip(tensor_program(4, -1000, (4,), (1,)), data__0=bytes(16)), "size or offset -1000"


@hostile
def tensor_by_a_negative_stride(canary: Path) -> Built:
    return torch_zip(tensor_program(4, 3, (4,), (-1,)), data__0=bytes(16)), "size or offset -1"


@hostile
def tensor_by_an_overflowing_stride(canary: Path) -> Built:
    program = tensor_program(4, 0, (3, 2), (2**62, 2**62))
    return torch_zip(program, data__0=bytes(16)), "size or offset"


@hostile
def safetensors_on_top_of_each_other(canary: Path) -> Built:
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    return safetensors({"a": entry, "b": entry}, bytes(16)), "on top of each other"


@hostile
def persistent_id_of_something_else(canary: Path) -> Built:
    return b"\x80\x02X\x05\x00\x00\x00shellQ.", "outside itself"


@hostile
def wrong_magic(canary: Path) -> Built:
    return b"\x7fELF" + bytes(100), r"no known format.*ELF"


@hostile
def web_page(canary: Path) -> Built:
    return b"<!DOCTYPE html><html>Sign in</html>", "a web page"


@hostile
def pointer_of_git_lfs(canary: Path) -> Built:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"


@hostile
def gzipped(canary: Path) -> Built:
    return b"\x1f\x8b\x08" + bytes(30), "gzip"


@hostile
def empty_file(canary: Path) -> Built:
    return b"", "0 bytes"
