"""Weight files that want to take all memory or time, or to be taken for what they are not."""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import torch

from tests.hostile_weights import (
    Built,
    hostile,
    npy,
    safetensors,
    saved,
    tensor_program,
    torch_zip,
    zipped,
)

__all__: list[str] = []  # its files are in HOSTILE


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
