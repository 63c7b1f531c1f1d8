# SPDX-License-Identifier: Apache-2.0
"""Payload ELFs: what is built, what is refused and how, and the guest memory they go to."""

from __future__ import annotations

import platform
import struct
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmm.guest.payload import FOLDER, Mailbox, Payload, PayloadError, load, names
from vmm.kvm.memory import PAGE_SIZE, GuestMemory

on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason=f"x86 payloads; this is {platform.machine()}")

# Offsets in an ELF64 header, and in its program headers (which follow it here).
E_CLASS, E_TYPE, E_MACHINE, E_PHNUM, PHDR = 4, 16, 18, 56, 64
P_TYPE, P_OFFSET, P_PADDR, P_FILESZ, P_MEMSZ, PHDR_SIZE = 0, 8, 24, 32, 40, 56
EM_386, EM_X86_64, EM_AARCH64, ET_REL, ET_EXEC, ET_DYN = 3, 62, 183, 1, 2, 3
GOOD = (FOLDER / "hello.elf").read_bytes()


def refused(path: Path | str) -> str:
    """Load ``path``, which has to be refused with one sentence that names the file; return that."""
    load.cache_clear()
    with pytest.raises(PayloadError) as caught:
        load(str(path))
    message = str(caught.value)
    assert "\n" not in message and Path(path).name in message
    return message


@pytest.fixture
def elf(tmp_path: Path) -> Iterator[Any]:
    """A writer of patched copies of a good ELF: (offset, format, value) triples."""

    def write(*patches: tuple[int, str, int], length: int | None = None) -> Path:
        data = bytearray(GOOD)
        for offset, form, value in patches:
            struct.pack_into("<" + form, data, offset, value)
        path = tmp_path / "patched.elf"
        path.write_bytes(data[:length])
        return path

    yield write
    load.cache_clear()


# What is built


@pytest.mark.parametrize("name", ["exceptions", "hello", "xstate"])
def test_a_payload_is_built_and_loads(name: str) -> None:
    assert name in names()
    payload = load(name)
    assert payload.name == name
    assert payload.segments and payload.end >= max(address + len(data) for address, data in payload.segments)
    assert any(address <= payload.entry < address + len(data) for address, data in payload.segments)


@on_x86
@pytest.mark.parametrize("name", names())
def test_a_payload_has_what_the_guest_and_its_tables_use(name: str) -> None:
    payload = load(name)
    fault = ["vector", "error", "rip", "cs", "rflags", "rsp", "cr2", "cr0"]
    fields = ["params", "values", "difference", "differences", *fault]
    wanted = {"vectors", "kernel_stack_top", "user_stack_top", "_start"} | {f"mailbox_{field}" for field in fields}
    assert not {symbol for symbol in wanted if not 0x100000 <= payload.symbol(symbol) < 4 << 20}
    assert payload.symbol("EVENT_PORT_NUMBER") == 0xE4
    assert payload.symbol("TICK_PORT_NUMBER") == 0xE8
    # 32 vectors of 16 bytes each, which the IDT assumes.
    assert payload.symbol("vectors") + 32 * 16 <= payload.end


@on_x86
@pytest.mark.parametrize("name", names())
def test_a_payload_stays_clear_of_the_tables_and_inside_guest_memory(name: str) -> None:
    payload = load(name)
    assert min(address for address, _ in payload.segments) == 0x100000
    assert payload.end <= 4 << 20
    spans = sorted((address, address + len(data)) for address, data in payload.segments)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@on_x86
@pytest.mark.parametrize(
    "symbol", ["fill_sse", "verify_sse", "fill_avx", "verify_avx", "fill_avx512", "verify_avx512"]
)
def test_the_state_payload_has_its_entry_points(symbol: str) -> None:
    assert load("xstate").symbol(symbol) > 0


@on_x86
def test_the_hello_payload_has_its_entry_points() -> None:
    assert {"cpuid", "xgetbv", "xsetbv"} <= set(load("hello").symbols)


def test_a_missing_symbol_is_a_payload_error() -> None:
    with pytest.raises(PayloadError, match="payload hello has no symbol 'nonesuch'"):
        load("hello").symbol("nonesuch")


def test_a_payload_by_path_equals_one_by_name() -> None:
    assert load(str(FOLDER / "hello.elf")) == load("hello")


def test_bss_is_counted_into_the_end(elf: Any) -> None:
    size = struct.unpack_from("<Q", GOOD, PHDR + PHDR_SIZE + P_FILESZ)[0]
    start = struct.unpack_from("<Q", GOOD, PHDR + PHDR_SIZE + P_PADDR)[0]
    payload = load(str(elf((PHDR + PHDR_SIZE + P_MEMSZ, "Q", size + 100_000))))
    assert len(payload.segments[1][1]) == size
    assert payload.end == start + size + 100_000


def test_an_empty_segment_is_not_loaded(elf: Any) -> None:
    second = PHDR + PHDR_SIZE
    payload = load(str(elf((second + P_FILESZ, "Q", 0), (second + P_MEMSZ, "Q", 0))))
    assert len(payload.segments) == 1


# What is refused


def test_a_missing_file_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    message = refused(tmp_path / "missing.elf")
    assert "neither a file nor one of the payloads here (" in message and "hello" in message


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert "is not a regular file" in refused(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x7fELF", b"just text, nothing to run here\n" * 50, bytes(5000)],
    ids=["empty", "magic", "text", "zeros"],
)
def test_a_file_that_is_not_an_elf_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "no.elf"
    path.write_bytes(content)
    assert "is not a complete ELF file" in refused(path)


@pytest.mark.parametrize("machine", [EM_386, EM_AARCH64 if platform.machine() == "x86_64" else EM_X86_64, 0, 243])
def test_an_elf_for_another_machine_is_refused(elf: Any, machine: int) -> None:
    message = refused(elf((E_MACHINE, "H", machine)))
    assert "is an ELF for " in message and f"this machine is {platform.machine()}" in message


def test_the_foreign_machine_is_named(elf: Any) -> None:
    foreign, name = (EM_AARCH64, "EM_AARCH64") if platform.machine() == "x86_64" else (EM_X86_64, "EM_X86_64")
    assert name in refused(elf((E_MACHINE, "H", foreign)))


def test_a_32_bit_elf_is_refused(elf: Any) -> None:
    refused(elf((E_CLASS, "B", 1)))


def test_a_32_bit_class_is_named(tmp_path: Path) -> None:
    # A well-formed ELF32 header of this very machine, as the x32 ABI has it.
    machine = EM_X86_64 if platform.machine() == "x86_64" else EM_AARCH64
    ident = b"\x7fELF\x01\x01\x01" + bytes(9)
    header = struct.pack("<HHIIIIIHHHHHH", ET_EXEC, machine, 1, 0, 0, 0, 0, 52, 32, 0, 40, 0, 0)
    path = tmp_path / "narrow.elf"
    path.write_bytes(ident + header)
    assert "(32 bits)" in refused(path)


@pytest.mark.parametrize(("kind", "name"), [(ET_DYN, "ET_DYN"), (ET_REL, "ET_REL")])
def test_an_elf_that_is_not_position_fixed_is_refused(elf: Any, kind: int, name: str) -> None:
    assert f"is not position-fixed ({name}): link it with -static -no-pie" in refused(elf((E_TYPE, "H", kind)))


def test_an_elf_without_a_segment_to_load_is_refused(elf: Any) -> None:
    assert "has no PT_LOAD segment" in refused(elf((E_PHNUM, "H", 0)))
    notes = [(PHDR + n * PHDR_SIZE + P_TYPE, "I", 4) for n in range(2)]
    assert "has no PT_LOAD segment" in refused(elf(*notes))


def test_a_segment_with_more_file_than_memory_is_refused(elf: Any) -> None:
    size = struct.unpack_from("<Q", GOOD, PHDR + P_FILESZ)[0]
    refused(elf((PHDR + P_MEMSZ, "Q", size - 1)))


def test_a_segment_with_more_file_than_memory_is_not_called_too_large(elf: Any) -> None:
    size = struct.unpack_from("<Q", GOOD, PHDR + P_FILESZ)[0]
    assert "at most" not in refused(elf((PHDR + P_MEMSZ, "Q", size - 1)))


@pytest.mark.parametrize("size", [(64 << 20) + 1, 1 << 40, (1 << 64) - 1])
def test_a_huge_segment_is_refused_by_its_size(elf: Any, size: int) -> None:
    assert f"has a segment of {size} bytes: payloads are at most " in refused(elf((PHDR + P_MEMSZ, "Q", size)))


@pytest.mark.parametrize("offset", [1 << 20, 1 << 62, (1 << 64) - 1])
def test_a_segment_beyond_the_file_is_refused(elf: Any, offset: int) -> None:
    refused(elf((PHDR + P_OFFSET, "Q", offset)))


@pytest.mark.parametrize("length", sorted({*range(0, 400, 13), *range(400, len(GOOD), 487), len(GOOD) - 1}))
def test_a_truncated_elf_is_refused(elf: Any, length: int) -> None:
    refused(elf(length=length))


def test_a_name_that_cannot_be_read_is_a_payload_error() -> None:
    load.cache_clear()
    with pytest.raises(PayloadError):
        load("no/such/folder/file.elf")


def test_a_name_that_is_too_long_is_a_payload_error() -> None:
    with pytest.raises(PayloadError):
        load("x" * 300)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    changes=st.lists(
        st.tuples(
            # Headers, section headers and symbols at the end, or anywhere.
            st.one_of(
                st.integers(0, PHDR + 2 * PHDR_SIZE - 1),
                st.integers(len(GOOD) - 1500, len(GOOD) - 1),
                st.integers(0, len(GOOD) - 1),
            ),
            st.integers(0, 255),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_damaged_elf_loads_or_is_a_payload_error(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for offset, value in changes:
        data[offset] = value
    path = tmp_path / "damaged.elf"
    path.write_bytes(data)
    load.cache_clear()
    try:
        payload = load(str(path))
    except PayloadError as error:
        assert "\n" not in str(error)
    else:
        assert payload.segments and sum(len(part) for _, part in payload.segments) <= 2 * (64 << 20)


# Guest memory


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """Two pages at 64 KiB that no VM knows of."""
    vm: Any = SimpleNamespace(fd=-1)
    with GuestMemory(vm, 0, 0x10000, 2 * PAGE_SIZE) as made:
        yield made


def test_what_was_written_is_read(memory: GuestMemory) -> None:
    memory.write(0x10000 + PAGE_SIZE - 2, b"abcd")
    assert memory.read(0x10000 + PAGE_SIZE - 3, 6) == b"\0abcd\0"
    assert bytes(memory.view[PAGE_SIZE - 2 : PAGE_SIZE + 2]) == b"abcd"


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        (0, 1),
        (0xFFFF, 1),
        (0xFFFF, 2),
        (0x10000 + 2 * PAGE_SIZE, 1),
        (0x10000 + 2 * PAGE_SIZE - 1, 2),
        (0x10000, 2 * PAGE_SIZE + 1),
        (1 << 64, 1),
        (-1, 1),
    ],
)
def test_an_access_outside_is_refused(memory: GuestMemory, gpa: int, length: int) -> None:
    with pytest.raises(IndexError, match="outside the guest memory"):
        memory.write(gpa, b"\xff" * length)
    with pytest.raises(IndexError, match="outside the guest memory"):
        memory.read(gpa, length)
    assert bytes(memory.view) == bytes(2 * PAGE_SIZE)


def test_the_whole_memory_can_be_written(memory: GuestMemory) -> None:
    memory.write(0x10000, b"\x55" * 2 * PAGE_SIZE)
    assert memory.read(0x10000, 2 * PAGE_SIZE) == b"\x55" * 2 * PAGE_SIZE


@pytest.mark.parametrize(
    ("gpa", "size", "backing"),
    [
        (0, 0, "anonymous"),
        (0, -4096, "anonymous"),
        (0, 100, "anonymous"),
        (1, PAGE_SIZE, "anonymous"),
        (0, PAGE_SIZE, "paper"),
    ],
)
def test_an_impossible_shape_is_refused(gpa: int, size: int, backing: str) -> None:
    vm: Any = SimpleNamespace(fd=-1)
    with pytest.raises(ValueError):
        GuestMemory(vm, 0, gpa, size, backing)


def test_closing_twice_does_not_fail_and_unmaps_the_memory(memory: GuestMemory) -> None:
    memory.close()
    memory.close()
    with pytest.raises(ValueError):
        memory.read(0x10000, 1)


def test_a_payload_is_written_where_it_belongs(memory: GuestMemory) -> None:
    payload = Payload("p", 0x10000, ((0x10010, b"one"), (0x10000 + PAGE_SIZE, b"two")), {}, 0x10000 + PAGE_SIZE + 3)
    payload.write_to(memory)
    assert memory.read(0x10010, 3) == b"one" and memory.read(0x10000 + PAGE_SIZE, 3) == b"two"


def test_a_mailbox_field_is_a_little_endian_word_of_its_symbol(memory: GuestMemory) -> None:
    payload = Payload("p", 0, (), {"mailbox_params": 0x10020, "mailbox_values": 0x10100}, 0)
    mailbox = Mailbox(memory, payload)
    mailbox.write("params", 0x1122334455667788, 2)
    assert memory.read(0x10030, 8) == bytes.fromhex("8877665544332211")
    mailbox.write("params", -1)
    assert mailbox.read("params") == (1 << 64) - 1
    memory.write(0x10108, (5).to_bytes(8, "little"))
    assert mailbox.values == [0, 5] + [0] * 14
    with pytest.raises(PayloadError, match="no symbol 'mailbox_other'"):
        mailbox.read("other")


# The reader against pyelftools' own


@pytest.mark.parametrize("name", names())
def test_a_payload_is_read_as_pyelftools_reads_it(name: str) -> None:
    with (FOLDER / f"{name}.elf").open("rb") as file:
        whole = ELFFile(file)
        table = whole.get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        symbols = {symbol.name: symbol["st_value"] for symbol in table.iter_symbols()}
        segments = [(s["p_paddr"], s.data()) for s in whole.iter_segments("PT_LOAD") if s["p_memsz"]]
    payload = load(name)
    assert payload.symbols == {name: value for name, value in symbols.items() if name}
    assert list(payload.segments) == segments
    assert payload.entry == whole["e_entry"]


@pytest.mark.parametrize("command", [["check"], ["run"]])
def test_dwarf_is_not_imported_for_a_payload(command: list[str]) -> None:
    program = "import sys, vmm.cli.{0}, vmm.conformance.server; print([m for m in sys.modules if 'dwarf' in m])"
    done = subprocess.run(
        [sys.executable, "-c", program.format(*command)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_symbol_table_without_entry_size_is_refused(elf: Any) -> None:
    section, count, size = (
        struct.unpack_from("<" + form, GOOD, at)[0] for at, form in ((40, "Q"), (60, "H"), (58, "H"))
    )
    (table,) = [n for n in range(count) if struct.unpack_from("<I", GOOD, section + n * size + 4)[0] == 2]
    assert "not a complete ELF file" in refused(elf((section + table * size + 56, "Q", 0)))
