# SPDX-License-Identifier: Apache-2.0
"""The stream: what is written comes back equal, and whatever is not a whole, untouched stream is refused."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.state.sealed import Piece, Sealed
from tests.state.state_samples import explain, tiny_state
from tests.state.stream_cases import TINY, read, refused, sealed, written
from vmm.state.architecture import ARCHITECTURES, of
from vmm.state.errors import StreamError
from vmm.state.parts import vcpu_shapes
from vmm.state.stream.container import LIMITS, Reader, Writer
from vmm.state.stream.decode import read_state
from vmm.state.stream.encode import write_state
from vmm.state.stream.memory import CHUNK
from vmm.state.value import Extent, MemoryState, PayloadIdentity, VcpuState, VmState

# --- what is written comes back -------------------------------------------------------------------

# Kinds of the stream's own, and parts that have a shape.
_TAKEN = {"VMCONFIG", "MEMORY", "END"}.union(
    *map(vcpu_shapes, ARCHITECTURES), *(of(arch).MACHINE for arch in ARCHITECTURES)
)
_numbers = st.integers(0, (1 << 64) - 1)
_kinds = st.from_regex(r"\A[A-Z][A-Z0-9_]{0,15}\Z").filter(lambda name: name not in _TAKEN)
_parts = st.dictionaries(
    _kinds,
    st.binary(max_size=300) | st.dictionaries(_numbers, st.binary(max_size=40), max_size=6),
    max_size=5,
)
_text = st.text(max_size=20)


@st.composite
def _regions(draw: st.DrawFn) -> tuple[MemoryState, ...]:
    regions, gpa = [], 0
    for _ in range(draw(st.integers(0, 3))):
        gpa += 4096 * draw(st.integers(0, 1 << 30))
        pages = draw(st.integers(1, 12))
        held = draw(st.lists(st.sampled_from([None, 0, 1, 7]), min_size=pages, max_size=pages))
        chunks = [
            Extent(gpa + 4096 * number, bytes([1 + seed]) + (os.urandom(4095) if seed == 7 else bytes(4095)))
            for number, seed in enumerate(held)
            if seed is not None
        ]
        regions.append(MemoryState.merged(gpa, 4096 * pages, chunks))
        gpa += 4096 * pages
    return tuple(regions)


@st.composite
def _states(draw: st.DrawFn) -> VmState:
    identifiers = draw(st.lists(st.integers(0, (1 << 32) - 1), max_size=3, unique=True))
    return VmState(
        draw(st.sampled_from(["x86", "arm64"])),
        tuple(VcpuState(draw(_parts), identifier) for identifier in identifiers),
        draw(_regions()),
        draw(_parts),
        draw(st.none() | st.builds(PayloadIdentity, _text, st.binary(min_size=32, max_size=32))),
        draw(st.dictionaries(_text, _text, max_size=3)),
    )


@settings(max_examples=150)
@given(_states(), st.sampled_from([None, 1, 3]), st.booleans())
def test_a_state_comes_back_equal(state: VmState, level: int | None, explained: bool) -> None:
    chosen = explain if explained else None
    data = written(state, explain=chosen, level=level)
    again = read(data, explain=chosen)
    assert again == state
    assert dict(again.about) == dict(state.about)
    assert [list(vcpu.parts) for vcpu in again.vcpus] == [list(vcpu.parts) for vcpu in state.vcpus]
    assert written(again, explain=chosen, level=level) == data


def test_memory_is_cut_at_its_chunks() -> None:
    data = os.urandom(CHUNK + 8192)
    state = VmState("x86", (), (MemoryState(0, 4 << 20, (Extent(4096, data),)),))
    stream = written(state)
    assert [len(piece.body) for piece in Sealed.open(stream).pieces if piece.kind == "MEMORY"] == [
        CHUNK + 16,
        8192 + 16,
    ]
    assert read(stream) == state


def test_zero_pages_are_left_out_and_pages_that_compress_are_compressed() -> None:
    view = bytearray(64 << 20)
    view[5 * 4096] = 1
    state = VmState("x86", (), (MemoryState.of(0, memoryview(view)),))
    assert len(written(state)) < 1000
    assert len(written(state, level=None)) > 4096
    assert read(written(state)) == state


def test_invalid_memory_is_refused_before_anything_is_written() -> None:
    for extents in (
        (Extent(0x3000, bytes(8192)),),
        (Extent(0x1000, bytes(4096)), Extent(0, bytes(4096))),
        (Extent(0, bytes(8192)), Extent(0x1000, bytes(4096))),
        (Extent(0, bytes(100)),),
        (Extent(100, bytes(4096)),),
        (Extent(0, b""),),
    ):
        file = io.BytesIO()
        with pytest.raises(ValueError):
            write_state(file, VmState("x86", (), (MemoryState(0, 0x4000, extents),)))
        assert not file.getvalue(), "something was written before the memory was looked at"


@pytest.mark.parametrize("name", ["MEMORY", "END", "VMCONFIG", "lower", "", "A" * 17, "TWO WORDS"])
def test_a_part_called_what_no_section_can_be_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        written(VmState("x86", (VcpuState({name: b""}),), ()))


# --- a stream that is not whole -------------------------------------------------------------------


def test_a_truncated_stream_is_refused() -> None:
    for length in range(len(TINY)):
        refused(TINY[:length], "cut off")


def test_a_flipped_bit_is_refused() -> None:
    stream = Sealed.open(TINY)
    stream.pieces.insert(2, Piece("NOTE", 0, b"ancillary", flags=0))
    data = bytearray(stream.seal())
    assert read(bytes(data)) == tiny_state()
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StreamError):
            read(bytes(data))
        data[bit // 8] ^= 1 << bit % 8


def test_bytes_after_the_end_are_refused_in_a_file_and_left_on_a_line() -> None:
    refused(TINY + b"\0", "beyond the end")
    file = io.BytesIO(TINY + TINY + b"rest")
    assert read_state(file, exact=False) == read_state(file, exact=False) == tiny_state()
    assert file.read() == b"rest"


class _Trickle:
    """A line that gives few bytes at a time, and has none of a file's other methods."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data, self._step, self.largest = io.BytesIO(data), step, 0

    def read(self, size: int, /) -> bytes:
        self.largest = max(self.largest, size)
        return self._data.read(min(size, self._step))


@pytest.mark.parametrize("step", [1, 3, 31])
def test_a_slow_line_gives_the_same_state(step: int) -> None:
    assert read_state(_Trickle(TINY, step)) == tiny_state()


class _Full:
    """A pipe that takes few bytes at a time."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes | memoryview, /) -> int:
        self.data += bytes(data[:7])
        return min(7, len(data))


def test_a_pipe_that_takes_little_gets_the_same_stream() -> None:
    pipe = _Full()
    write_state(pipe, tiny_state())
    assert pipe.data == TINY


# --- sections -------------------------------------------------------------------------------------


def _at(number: int, edit: Callable[[list[Piece], int], object]) -> Callable[[Sealed], object]:
    return lambda stream: edit(stream.pieces, number)


def test_a_missing_section_is_refused() -> None:
    for number, piece in enumerate(Sealed.open(TINY).pieces):
        if piece.kind != "MEMORY":  # without it the page is zero: a state too, and another one
            refused(sealed(_at(number, lambda pieces, n: pieces.pop(n))), "has its place here|is missing")
    refused(sealed(lambda stream: stream.pieces.clear()), "missing")


def test_a_duplicated_or_moved_section_is_refused() -> None:
    count = len(Sealed.open(TINY).pieces)
    for first in range(count):
        refused(
            sealed(_at(first, lambda pieces, n: pieces.insert(n, pieces[n].copy()))),
            "place here|out of order|overlaps",
        )
        for second in range(first):

            def swap(stream: Sealed, a: int = first, b: int = second) -> None:
                stream.pieces[a], stream.pieces[b] = stream.pieces[b], stream.pieces[a]

            refused(sealed(swap), "place here|out of order")


def test_a_section_of_another_index_is_refused() -> None:
    for number in range(len(Sealed.open(TINY).pieces)):
        refused(sealed(_at(number, lambda pieces, n: setattr(pieces[n], "index", 1))), "place here|out of order")


def test_an_unknown_critical_section_is_refused_and_an_ancillary_one_skipped() -> None:
    for position in range(len(Sealed.open(TINY).pieces) + 1):
        ancillary = _at(position, lambda pieces, n: pieces.insert(n, Piece("NOTE", 9, b"x" * 100, flags=0)))
        assert read(sealed(ancillary)) == tiny_state()
        critical = _at(position, lambda pieces, n: pieces.insert(n, Piece("NOTE", 9, b"x" * 100)))
        refused(sealed(critical), r"NOTE 9.*critical.*does not know")


def test_a_skipped_section_is_named() -> None:
    reader = Reader(io.BytesIO(sealed(lambda s: s.pieces.insert(0, Piece("NOTE", 9, b"", flags=0)))))
    assert [section.kind for section in reader.sections({"VMCONFIG", "REGS", "MSRS", "MEMORY"})] == [
        "VMCONFIG", "REGS", "MSRS", "MEMORY",
    ]  # fmt: skip
    assert len(reader.skipped) == 1 and reader.skipped[0].startswith("section 0 (NOTE 9) at byte ")


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda s: setattr(s, "magic", b"\x89PNG\r\n\x1a\n"), "wrong magic number"),
        (lambda s: setattr(s, "format", 2), "format 2"),
        (lambda s: setattr(s, "format", 0), "format 0"),
        (lambda s: setattr(s, "arch", 3), "architecture 3"),
        (lambda s: setattr(s, "flags", 1), "flags 0x1"),
        (lambda s: setattr(s.pieces[0], "flags", 3), "flags 0x3"),
        (lambda s: setattr(s.pieces[0], "zero", 1), "0x1"),
        (lambda s: setattr(s.pieces[0], "kind", "lower"), "not a name"),
        (lambda s: setattr(s.pieces[0], "kind", b"A\0B"), "not a name"),
        (lambda s: setattr(s.pieces[0], "kind", b"\xff\xfe"), "not a name"),
        (lambda s: setattr(s.pieces[0], "length", (1 << 64) - 1), "above the limit"),
        (lambda s: setattr(s.pieces[0], "length", LIMITS.section + 1), "above the limit"),
        (lambda s: setattr(s.pieces[0], "length", LIMITS.section), "cut off"),
    ],
)
def test_an_invalid_head_is_refused(edit: Callable[[Sealed], object], match: str) -> None:
    refused(sealed(edit), match)


def test_an_end_that_lies_is_refused() -> None:
    stream = Sealed.open(TINY)
    refused(stream.seal(count=len(stream.pieces) + 1), "its end declares")
    refused(stream.seal(digest=bytes(31) + b"\1"), "digest of the whole stream")
    refused(stream.seal(end=Piece("END", 0, bytes(39))), "39 bytes")
    honest = TINY[-72:-32]
    refused(stream.seal(end=Piece("END", 1, honest)), "index 0")
    refused(stream.seal(end=Piece("END", 0, honest, flags=0)), "critical")


def test_sections_exchanged_between_streams_are_refused() -> None:
    other = written(VmState("x86", tiny_state().vcpus, tiny_state().memory, {"CLOCK": b"\1" * 8}, None, {"a": "b"}))
    first, second = Sealed.open(TINY), Sealed.open(other)
    first_end = TINY[TINY.index(b"END\0") :]
    second.header = first.header
    mixed = second.seal()
    refused(mixed[: mixed.index(b"END\0")] + first_end, "sections were exchanged")


def test_the_number_of_sections_has_a_limit() -> None:
    many = sealed(lambda s: s.pieces.extend(Piece("NOTE", n, b"", flags=0) for n in range(4100)))
    refused(many, "more than 4096 sections")


def test_an_error_of_the_line_is_raised_as_it_is() -> None:
    class Broken:
        def read(self, size: int, /) -> bytes:
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        Reader(Broken())


def test_a_stream_written_section_by_section_comes_back_equal() -> None:
    file = io.BytesIO()
    writer = Writer(file, "arm64", b"anything")
    writer.section("ONE", 7, b"a", memoryview(b"bc"))
    writer.section("TWO", 0, critical=False)
    writer.end()
    file.seek(0)
    reader = Reader(file)
    assert (reader.arch, reader.header) == ("arm64", b"anything")
    assert [(s.kind, s.index, s.critical, s.body) for s in reader.sections()] == [
        ("ONE", 7, True, b"abc"), ("TWO", 0, False, b""),
    ]  # fmt: skip
    assert reader.digest is not None
    with pytest.raises(ValueError):
        Writer(io.BytesIO(), "x86", b"").section("END", 0, b"")
