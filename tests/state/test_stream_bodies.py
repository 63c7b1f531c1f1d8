# SPDX-License-Identifier: Apache-2.0
"""The bodies of a stream: canonical, of their shape, in their order, and never larger than they may be."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import cbor2
import pytest
import zstandard

from tests.patience import LIMIT
from tests.state.sealed import Piece, Sealed
from tests.state.state_samples import SAMPLES, explain, leaf_d, tiny_state
from tests.state.stream_cases import TINY, read, refused, sealed, written
from vmm.arch import ARCHITECTURE
from vmm.state.errors import StreamError
from vmm.state.explain import explain as real
from vmm.state.stream.container import LIMITS
from vmm.state.stream.decode import read_state
from vmm.state.stream.memory import CHUNK, MemoryEncoder
from vmm.state.value import Extent, MemoryState, Part, VcpuState, VmState

# --- bodies ---------------------------------------------------------------------------------------


def _body(kind: str, body: bytes) -> bytes:
    return sealed(lambda stream: setattr(stream.find(kind), "body", body))


def _header(change: Mapping[str, object], without: str | None = None) -> bytes:
    value = {**cbor2.loads(Sealed.open(TINY).header), **change}
    value.pop(without, None)
    return sealed(lambda stream: setattr(stream, "header", cbor2.dumps(value, canonical=True)))


@pytest.mark.parametrize(
    "body",
    [
        cbor2.dumps({"raw": b"x", "b": 1}),  # keys out of order
        b"\xa1\x63raw\x58\x01x",  # a longer head than it takes
        b"\xa1\x63raw\x41x\x00",  # bytes behind
        b"\xa1\x63raw",  # cut off
        b"\xbf\x63raw\x41x\xff",  # an indefinite map
        b"\xa1\x63raw\x5f\x41x\xff",  # an indefinite string
        b"\xa2\x63raw\x41x\x63raw\x41x",  # a key twice
        b"\xa1\x63raw\xc0\x41x",  # a tag
        b"\xd8\x1c\xa1\x63raw\x41x",  # a shared reference
        b"\xa1\x63raw\xf6",  # null
        b"\xa1\x63raw\x20",  # a negative number
        b"\xa1\x63raw\xfb" + bytes(8),  # a float
        b"\xa2\x00\x00\x63raw\x41x",  # keys of two types
        b"\xa1\x41a\x00",  # a key of bytes
        b"\xa1\x62\xff\xfe\x00",  # no UTF-8
        b"\x9b" + b"\xff" * 8,  # an array of 2**64 - 1 items
        b"\xbb" + b"\xff" * 8,
        b"\x5b" + b"\xff" * 8,
        b"\x5a\x7f\xff\xff\xff",
        b"\x81" * 100_000 + b"\x00",  # nested
        b"\x1c",  # a reserved head
        b"",
    ],
)
def test_a_body_that_is_not_canonical_is_refused(body: bytes) -> None:
    refused(_body("REGS", body), r"section 1 \(REGS 0\) at byte \d+: its body is")
    refused(sealed(lambda stream: setattr(stream, "header", body)), "the header")


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({}, "either raw bytes or registers"),
        ({"raw": b"x", "registers": {}}, "either raw bytes or registers"),
        ({"raw": "text"}, "raw is str"),
        ({"raw": b"x", "more": 1}, "too many: more"),
        ([b"x"], "a part is list"),
        ({"registers": [1]}, "registers is list"),
        ({"registers": {"a": b"x"}}, "number is str"),
        ({"registers": {1: 2}}, "0x1 is int"),
        ({"raw": b"x", "fields": {}}, "fields is dict"),
        ({"raw": b"x", "fields": []}, "say nothing"),
        ({"raw": b"x", "fields": [["a"]]}, "a name and a value"),
        ({"raw": b"x", "fields": [[1, 1]]}, "name is int"),
        ({"raw": b"x", "fields": [["a", b""]]}, "neither text nor"),
        ({"raw": b"x", "fields": [["a", 1], ["a", 1]]}, "twice"),
    ],
)
def test_a_part_of_another_shape_is_refused(value: object, match: str) -> None:
    refused(_body("REGS", cbor2.dumps(value, canonical=True)), match)


@pytest.mark.parametrize(
    ("value", "match"),
    [({}, "missing or too many: machine"), ({"machine": {}}, "CLOCK"), ({"machine": 1}, "machine is int"),
     ({"machine": {"CLOCK": {"raw": b""}, "MORE": {"raw": b""}}}, "MORE")],
)  # fmt: skip
def test_a_vmconfig_of_another_shape_is_refused(value: object, match: str) -> None:
    refused(_body("VMCONFIG", cbor2.dumps(value, canonical=True)), match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"about": {"a": 1}}, "about.a is int"),
        ({"about": {1: "a"}}, "name in about is int"),
        ({"machine": ["CLOCK", "CLOCK"]}, "twice"),
        ({"machine": ["clock"]}, "cannot be called"),
        ({"machine": ["MEMORY"]}, "cannot be called"),
        ({"memory": [[0, 0]]}, "not in pages"),
        ({"memory": [[0, 100]]}, "not in pages"),
        ({"memory": [[1, 4096]]}, "not in pages"),
        ({"memory": [[(1 << 64) - 4096, 8192]]}, "not in pages"),
        ({"memory": [[0, 4096, 1]]}, "an address and a size"),
        ({"memory": [[0, 8 << 30]]}, "above the limit"),
        ({"memory": [[0, 3 << 30], [3 << 30, 3 << 30]]}, "above the limit"),
        ({"vcpus": [[0, ["REGS"]], [0, ["REGS"]]]}, "same identifier"),
        ({"vcpus": [[0, ["REGS", "REGS"]]]}, "twice"),
        ({"vcpus": [[0, ["END"]]]}, "cannot be called"),
        ({"vcpus": [[0]]}, "identifier and parts"),
        ({"vcpus": [[n, [f"P{m}" for m in range(50)]] for n in range(90)]}, "more than 4096"),
        ({"payload": {"name": "x", "digest": b"short"}}, "5 bytes and not 32"),
        ({"payload": {"name": "x"}}, "digest"),
        ({"more": 1}, "too many: more"),
    ],
)
def test_a_header_of_another_shape_is_refused(change: dict[str, object], match: str) -> None:
    refused(_header(change), f"the header: .*{match}")


@pytest.mark.parametrize("name", ["about", "machine", "memory", "vcpus"])
def test_a_header_that_lacks_an_entry_is_refused(name: str) -> None:
    refused(_header({}, without=name), f"missing or too many: {name}")


def test_a_strangers_control_characters_do_not_reach_the_terminal() -> None:
    data = _header({"about": {"\x1b[2J": 1}})
    with pytest.raises(StreamError) as caught:
        read(data)
    assert str(caught.value).isprintable() and "?[2J" in str(caught.value)


def _with_field(edit: Callable[[list[list[object]]], object], data: bytes, kind: str = "REGS") -> bytes:
    def change(stream: Sealed) -> None:
        value = cbor2.loads(stream.find(kind).body)
        edit(value["fields"])
        stream.find(kind).body = cbor2.dumps(value, canonical=True)

    return sealed(change, data)


def test_fields_that_contradict_the_raw_bytes_are_refused() -> None:
    state = SAMPLES["x86"]
    data = written(state, explain=explain)
    assert read(data, explain=explain) == read(data) == state
    lie = _with_field(lambda fields: fields[0].__setitem__(1, 145), data)
    assert read(lie) == state, "who cannot decode has only the raw bytes"
    refused(lie, r"REGS 0.*field bytes says 145, its raw bytes say 144", explain=explain)
    newer = _with_field(lambda fields: fields.append(["of a later version", 1]), data)
    assert read(newer, explain=explain) == state


@pytest.mark.skipif(ARCHITECTURE != "x86", reason=f"names of x86 registers; this is {ARCHITECTURE}")
def test_real_fields_that_contradict_the_raw_bytes_are_refused() -> None:
    for label in ("x86", "x86-tiles"):
        data = written(SAMPLES[label], explain=real)
        assert read(data, explain=real) == SAMPLES[label]
        for kind in ("CPUID", "XSAVE", "MSRS", "REGS", "EVENTS", "XCRS"):
            for number in range(len(cbor2.loads(Sealed.open(data).find(kind).body)["fields"])):

                def edit(fields: list[list[object]], number: int = number) -> None:
                    fields[number][1] = "a lie"

                lie = _with_field(edit, data, kind)
                refused(lie, rf"\({kind} 0\).*says a lie, its raw bytes say", explain=real)


def test_a_part_of_another_shape_is_not_explained() -> None:
    called = []

    def watched(arch: str, name: str, parts: Mapping[str, Part]) -> dict[str, str | int]:
        called.append(name)
        return explain(arch, name, parts)

    state = VmState("x86", (VcpuState({"OTHER": b"x", "REGS": b"short"}),), ())
    data = written(state, explain=explain)
    refused(data, r"\(REGS 0\).*5 bytes and not 144", explain=watched)
    assert not called
    other = VmState("x86", (VcpuState({"OTHER": b"x"}),), ())
    assert read(written(other, explain=explain), explain=watched) == other and not called


def test_components_that_lie_inside_each_other_are_refused() -> None:
    table = leaf_d(tiles=True).edit(0xD, 5, eax=4096, ebx=600)
    parts = {**SAMPLES["x86-tiles"].vcpus[0].parts, "CPUID": table.packed}
    data = written(VmState("x86", (VcpuState(parts),), ()), explain=explain)
    refused(data, r"\(XSAVE 0\).*OPMASK lies inside YMM", explain=explain)


# --- memory ---------------------------------------------------------------------------------------


def _memory(gpa: int, length: int, encoding: int, data: bytes) -> bytes:
    return _body("MEMORY", struct.pack("<QII", gpa, length, encoding) + data)


def _frame(data: bytes, **options: object) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("place", "data", "match"),
    [
        ((0x2000, 4096, 0), bytes(4095), "4095 bytes of memory but declares 4096"),
        ((0x2000, 4096, 0), bytes(4097), "declares 4096"),
        ((0x2000, 4096, 2), bytes(4096), "encoding 2"),
        ((0x2000, 100, 0), bytes(100), "not 1 to 256 pages"),
        ((0x2000, 0, 0), b"", "not 1 to 256 pages"),
        ((0x2000, 2 << 20, 1), _frame(bytes(2 << 20)), "not 1 to 256 pages"),
        ((0x2001, 4096, 0), bytes(4096), "not 1 to 256 pages"),
        ((0x4000, 4096, 0), bytes(4096), "leaves its region"),
        ((1 << 63, 4096, 0), bytes(4096), "leaves its region"),
        ((0x2000, 4096, 1), _frame(bytes(8192)), "promises 8192"),
        ((0x2000, 8192, 1), _frame(bytes(4096)), "promises 4096"),
        ((0x2000, 4096, 1), _frame(bytes(4096), write_content_size=False), "promises"),
        ((0x2000, 4096, 1), _frame(bytes(4096)) + b"x", "damaged"),
        ((0x2000, 4096, 1), _frame(bytes(2048)) * 2, "promises 2048"),
        ((0x2000, 4096, 1), _frame(bytes(4096))[:-1], "damaged"),
        ((0x2000, 4096, 1), b"no frame", "damaged"),
        ((0x2000, 4096, 1), b"", "damaged"),
        ((0x2000, 4096, 1), bytes(4096), "more than it takes"),
    ],
)
def test_invalid_memory_is_refused(place: tuple[int, int, int], data: bytes, match: str) -> None:
    refused(_memory(*place, data), match)


def test_memory_shorter_than_its_head_is_refused() -> None:
    refused(_body("MEMORY", bytes(15)), "too few")


def test_a_frame_that_lies_about_its_size_is_refused() -> None:
    frame = bytearray(_frame(bytes(1 << 20)))
    # The frame header: magic (4), descriptor (1), window or content size. Make it promise 4096 bytes.
    promise = struct.pack("<H", 4096 - 256)
    lying = bytes(frame[:4]) + bytes([0x40 | frame[4] & 0x24]) + (b"" if frame[4] & 0x20 else frame[5:6]) + promise
    lying += bytes(frame[5 + (0 if frame[4] & 0x20 else 1) + 4 :])
    assert zstandard.get_frame_parameters(lying).content_size == 4096
    refused(_memory(0x2000, 4096, 1, lying), "damaged|holds")


def test_memory_in_another_order_is_refused() -> None:
    state = VmState("x86", (), (MemoryState(0, 0x4000, (Extent(0, b"a" * 4096), Extent(0x2000, b"b" * 4096))),))
    data = written(state)
    assert read(data) == state
    refused(sealed(lambda s: s.pieces.reverse(), data), "place here")

    def swap(stream: Sealed) -> None:
        stream.pieces[1:] = reversed(stream.pieces[1:])

    refused(sealed(swap, data), "overlaps, goes back")
    two = VmState("x86", (), (state.memory[0], MemoryState(0x10000, 0x1000, (Extent(0x10000, b"c" * 4096),))))
    data = written(two)
    assert read(data) == two
    refused(sealed(swap, data), "out of order|overlaps, goes back")
    refused(sealed(lambda s: setattr(s.pieces[-1], "index", 2), data), "no region")
    down = VmState("x86", (), two.memory[::-1])
    data = written(down)
    assert read(data) == down
    refused(sealed(lambda s: s.pieces.append(s.pieces.pop(1)), data), "out of order")


def test_an_encoder_refuses_what_a_section_cannot_hold() -> None:
    for gpa, data in ((0, b""), (0, bytes(100)), (1, bytes(4096)), (0, bytes(CHUNK + 4096))):
        with pytest.raises(ValueError):
            MemoryEncoder().body(gpa, data)


# --- bounded memory -------------------------------------------------------------------------------

_BOMB = """
import resource, sys
from vmm.state.stream.decode import read_state
from vmm.state.stream.container import Limits, StreamError
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (48 << 20), now + (48 << 20)))
try:
    read_state(sys.stdin.buffer, limits=Limits(memory=16 << 20))
except StreamError as error:
    print(error)
else:
    print("accepted")
"""


def _bounded(data: bytes) -> str:
    """What a reader in 48 MiB of memory says."""
    done = subprocess.run(
        [sys.executable, "-c", _BOMB], input=data, capture_output=True, timeout=LIMIT, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_a_lie_about_a_length_costs_no_memory() -> None:
    assert "cut off" in _bounded(sealed(lambda s: setattr(s.pieces[0], "length", LIMITS.section)))
    assert "cut off" in _bounded(sealed(lambda s: setattr(s.pieces[0], "length", LIMITS.section))[:150])


def test_a_bomb_of_zeros_costs_no_memory() -> None:
    bomb = VmState("x86", (), (MemoryState(0, 512 << 20, (Extent(0, bytes(512 << 20)),)),))
    data = written(bomb)
    assert len(data) < 200_000
    assert "above the limit" in _bounded(data)

    def small(stream: Sealed) -> None:
        value = cbor2.loads(stream.header)
        value["memory"] = [[0, 4096]]
        stream.header = cbor2.dumps(value, canonical=True)

    assert "leaves its region" in _bounded(sealed(small, data))


def test_a_bomb_of_items_costs_no_memory() -> None:
    assert "more than 65536 items" in _bounded(_body("REGS", b"\x9a\x00\x30\x00\x00" + bytes(3 << 20)))
    assert "nested deeper" in _bounded(_body("REGS", b"\x81" * (1 << 20) + b"\0"))


def test_skipped_sections_are_not_held_in_memory() -> None:
    def add(stream: Sealed) -> None:
        stream.pieces += [Piece("NOTE", 0, bytes(30 << 20), flags=0)] * 3

    data = sealed(add)

    class Counted(io.BytesIO):
        largest = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.largest = max(self.largest, size or 0)
            return super().read(size)

    file = Counted(data)
    assert read_state(file) == tiny_state()
    assert file.largest <= 2 << 20
