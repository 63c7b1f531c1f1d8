# SPDX-License-Identifier: Apache-2.0
import struct

import pytest
from labs.errors import LabError
from labs.untraced import untraced

_NO_OP = bytes.fromhex("0f1f440000")
_PLT32 = 4


def _module(text: bytes, places: dict[int, int], machine: int = 62) -> bytes:
    """Return an ELF file with `text`, in which symbols (1 other, 2 __fentry__) are referred to at places."""
    names = b"\0other\0__fentry__\0__mcount_loc\0"
    symbols = b"".join(struct.pack("<I20x", name) for name in (0, 1, 7))
    relocations = b"".join(struct.pack("<QQq", at, number << 32 | _PLT32, -4) for at, number in places.items())
    parts = [(1, text, 0, 0), (4, relocations, 3, 1), (2, symbols, 4, 0), (3, names, 0, 0)]
    body, table = b"", struct.pack("<64x")
    for kind, content, link, info in parts:
        table += struct.pack("<II8x8xQQIIQQ", 0, kind, 64 + len(body), len(content), link, info, 1, 0)
        body += content
    head = b"\x7fELF\x02\x01".ljust(18, b"\0")
    head += struct.pack("<H20xQ12xH2x", machine, 64 + len(body), len(parts) + 1)
    return head + body + table


def test_calls_of_ftrace_become_no_ops_and_their_list_has_another_name() -> None:
    call = b"\xe8\0\0\0\0"
    module = _module(b"\x90" + call + call + b"\xc3", {2: 2, 7: 1})
    changed = untraced(module)
    assert changed[64:76] == b"\x90" + _NO_OP + call + b"\xc3", "the other call stays"
    assert changed[76:100] == bytes(24) and changed[100:124] == module[100:124]
    assert b"\0__unused_loc\0" in changed and b"__mcount_loc" not in changed
    assert len(changed) == len(module)


def test_modules_of_another_architecture_stay_as_they_are() -> None:
    assert untraced(b"module") == b"module"
    module = _module(b"\xe8\0\0\0\0", {1: 2}, machine=183)
    assert untraced(module) == module


def test_a_reference_to_ftrace_that_is_no_call_is_an_error() -> None:
    with pytest.raises(LabError, match="without calling it"):
        untraced(_module(b"\xe9\0\0\0\0", {1: 2}))
