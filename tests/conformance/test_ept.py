# SPDX-License-Identifier: Apache-2.0
"""What a kernel's trace says of EPT: its lines, whose they are, and what an entry means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.arch import ARCHITECTURE
from vmm.conformance.x86.ept import Mapping, mappings
from vmm.x86.memory_types import MemoryType

pytestmark = pytest.mark.skipif(ARCHITECTURE != "x86", reason=f"EPT is x86's; this is {ARCHITECTURE}")

_TOKEN = "xstate-vmm-7-1"
_COMMANDS = st.sampled_from(["vmm", "python3", "CPU 0/KVM", "qemu-kvm", "a-1 [000] b", "<...>"])
_THREADS = st.integers(1, 4194304)
_FLAGS = st.sampled_from([".....", "d..1.", "....1", "d.h2."])
_FRAMES, _ENTRIES, _LEVELS = st.integers(0, (1 << 40) - 1), st.integers(0, (1 << 64) - 1), st.integers(1, 3)
_MAPPINGS = st.builds(Mapping, _FRAMES, _ENTRIES, _LEVELS)


def line(thread: int, event: str, command: str = "vmm", flags: str = ".....", cpu: int = 0) -> str:
    return f"{command:>16}-{thread:<7} [{cpu:03}] {flags} 1234.567890: {event}"


def spte(mapping: Mapping, shown: str = "rwx-") -> str:
    where = f"gfn {mapping.gfn:x} spte {mapping.spte:x} ({shown}) level {mapping.level}"
    return f"kvm_mmu_set_spte: {where} at 10b8c5c00"


def mark(thread: int, token: str = _TOKEN) -> str:
    return line(thread, f"tracing_mark_write: {token}")


@given(_MAPPINGS, _COMMANDS, _THREADS, _FLAGS, st.integers(0, 8191), st.sampled_from(["rwx-", "r-xu", "----"]))
def test_a_mapping_is_read_as_it_was_written(
    mapping: Mapping, command: str, thread: int, flags: str, cpu: int, shown: str
) -> None:
    assert mappings([mark(thread), line(thread, spte(mapping, shown), command, flags, cpu)], _TOKEN) == [mapping]


@given(st.lists(st.tuples(st.booleans(), _MAPPINGS), max_size=20), _THREADS, _THREADS)
def test_only_the_marks_threads_mappings_count(made: list[tuple[bool, Mapping]], ours: int, theirs: int) -> None:
    lines = [line(ours if own else theirs, spte(mapping)) for own, mapping in made]
    lines += [mark(theirs, "xstate-vmm-8-1"), mark(ours)]
    expected = [mapping for own, mapping in made if own or ours == theirs]
    assert mappings(lines, _TOKEN) == expected


@given(st.lists(_MAPPINGS, max_size=3), _THREADS)
def test_without_a_mark_no_mapping_counts(made: list[Mapping], thread: int) -> None:
    assert mappings([line(thread, spte(mapping)) for mapping in made], _TOKEN) == []
    assert mappings([mark(thread, _TOKEN + "0"), *(line(thread, spte(one)) for one in made)], _TOKEN) == []


@given(st.lists(st.text(max_size=80), max_size=5), _MAPPINGS)
def test_other_lines_change_nothing(others: list[str], mapping: Mapping) -> None:
    noise = [text for text in others if "kvm_mmu_set_spte" not in text and "tracing_mark_write" not in text]
    known = ["# tracer: nop", "", "CPU:0 [LOST 3 EVENTS]", line(5, "kvm_exit: reason EPT_VIOLATION rip 0x100000")]
    assert mappings([*noise, *known, mark(5), line(5, spte(mapping)), *noise, *known], _TOKEN) == [mapping]


@given(_FRAMES, st.sampled_from(list(MemoryType)), st.booleans(), st.integers(0, 7), st.integers(0, 1 << 40))
def test_an_entry_has_its_type_in_bits_5_to_3_and_ignores_pat_by_bit_6(
    gfn: int, kind: MemoryType, ignored: bool, rights: int, frame: int
) -> None:
    found = Mapping(gfn, frame << 12 | ignored << 6 | kind << 3 | rights, 1)
    assert (found.memory_type, found.ignores_pat) == (kind, ignored)
