# SPDX-License-Identifier: Apache-2.0
"""Memory types on x86: IA32_PAT, what the host's KVM does with it, and how a guest's timing is judged."""

from __future__ import annotations

import errno
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.mutations.lies import Proceed, Shared, after_entry, answer, both
from tests.mutations.x86.cr0cd import cache_disable_slows_the_guest_down
from tests.mutations.x86.lies import timed
from vmm._kvm import ffi, lib
from vmm.arch import ARCHITECTURE
from vmm.conformance import dev_rules
from vmm.conformance.context import Options
from vmm.conformance.execute import execute
from vmm.conformance.model import ClauseResult, Verdict
from vmm.conformance.registry import all_clauses
from vmm.kvm import coherence
from vmm.kvm.device import device_type_answers, vfio_groups
from vmm.kvm.ioctl import Call, Interposer
from vmm.kvm.system import Kvm
from vmm.probe.host import measure
from vmm.x86 import boot, cpuid, memory_types
from vmm.x86.cpuid import Cpuid, Entry
from vmm.x86.memory_types import GuestPat, MemoryType, MemoryTypes, Quirk, describe_quirks, pat

pytestmark = pytest.mark.skipif(ARCHITECTURE != "x86", reason=f"memory types are x86's; this is {ARCHITECTURE}")


def test_pat_has_each_type_in_its_entry() -> None:
    reset = [MemoryType.WB, MemoryType.WT, MemoryType.UC_MINUS, MemoryType.UC] * 2
    assert pat(reset) == memory_types.PAT_AT_RESET == 0x0007040600070406
    assert pat([MemoryType.UC]) == 0x0606060606060600
    assert pat([]) == 0x0606060606060606


@pytest.mark.kvm
def test_a_page_selects_its_pat_entry(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        memory = vm.add_memory(1 << 20)
        boot.write_pat_entries(memory, range(8))
        table = struct.unpack("<512Q", memory.read(boot.TABLE, 4096))
        directory = struct.unpack("<Q", memory.read(boot.DIRECTORIES + 8, 8))[0]
    assert directory == boot.TABLE | 7
    for number, entry in enumerate(table):
        wanted = number if number < 8 else 0
        assert entry & ~0xFFF == 0x200000 + 0x1000 * number
        assert (entry >> 3 & 1 | (entry >> 4 & 1) << 1 | (entry >> 7 & 1) << 2) == wanted
        assert entry & 7 == 7, "present, writable, user"


@pytest.mark.parametrize(
    ("backend", "two_levels", "quirks", "expected"),
    [
        ("kvm_pvm", False, 0x5FF, "ignored"),
        ("kvm_intel", False, 0xDFF, "ignored"),
        ("kvm_intel", True, 0x7F, "ignored"),
        ("kvm_intel", True, 0xFFF, "quirk"),
        ("kvm_amd", True, 0xFFF, "honoured"),
        ("kvm_amd", True, 0x7F, "honoured"),
        ("kvm_amd", False, 0x7F, "ignored"),
        ("kvm_new", True, 0xFFF, "unknown"),
        # Nothing shows whether KVM shadows the guest's tables.
        ("kvm_intel", None, 0x7F, "unknown"),
        ("kvm_intel", None, 0xFFF, "unknown"),
        ("kvm_amd", None, 0xFFF, "unknown"),
    ],
)
def test_back_end_levels_and_quirks_decide_about_the_guests_types(
    backend: str, two_levels: bool | None, quirks: int, expected: str
) -> None:
    assert memory_types._guest_pat(backend, two_levels, quirks) == expected


def test_a_quirk_is_shown_by_its_name() -> None:
    assert describe_quirks(0) == "0x0 (none)"
    assert describe_quirks(1 << 9 | 1) == "0x201 (LINT0_REENABLED IGNORE_GUEST_PAT)"
    assert describe_quirks(1 << 40) == "0x10000000000 (bit 40)"


def test_a_quirk_has_the_bit_that_the_uapi_gives_it() -> None:
    assert {quirk.name: int(quirk) for quirk in Quirk} == {
        name.removeprefix("KVM_X86_QUIRK_"): getattr(lib, name)
        for name in dir(lib)
        if name.startswith("KVM_X86_QUIRK_")
    }


def test_self_snoop_is_what_the_kernel_left_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(cpuid, "host", Cpuid([Entry(1, edx=1 << 27)]).get)
    assert memory_types.self_snoop(tmp_path / "absent")
    shown = (("flags\t\t: fpu ss ht\n", True), ("flags\t\t: fpu ssse3 ht\n", False), ("model\t: 1\n", True))
    for text, expected in shown:
        cpuinfo.write_text(text)
        assert memory_types.self_snoop(cpuinfo) is expected
    monkeypatch.setattr(cpuid, "host", Cpuid().get)
    assert not memory_types.self_snoop(tmp_path / "absent")


def test_vfio_groups_are_read_from_their_folder(tmp_path: Path) -> None:
    for name in ("12", "7", "noiommu-0", "vfio", "devices", "noiommu-x"):
        (tmp_path / name).touch()
    assert vfio_groups(tmp_path) == ("12", "7", "noiommu-0")
    assert vfio_groups(tmp_path / "absent") == ()


def types(**changed: Any) -> Any:
    """Facts of an Intel host with everything."""
    given = MemoryTypes(
        guest_pat=GuestPat.QUIRK, two_levels=True, quirks=0xFFF, self_snoop=True, nested=False, vfio=True,
        groups=("12",), flush_instruction="CLFLUSHOPT", line_size=64,
    )  # fmt: skip
    return replace(given, **changed)


def test_the_probe_says_what_a_vmm_has_to_do() -> None:
    said = {kind: types(guest_pat=kind).duty() for kind in GuestPat}
    assert len(set(said.values())) == len(GuestPat) and all("flush" in duty for duty in said.values())
    lines = dict(types(nested=True, groups=(), vfio=False).lines())
    assert lines["guest PAT"].startswith("ignored until") and "hypervisor below" in lines["guest PAT"]
    assert lines["KVM's VFIO device"] == "no, no group in /dev/vfio"
    assert lines["cache lines"] == "64 bytes, flushed by CLFLUSHOPT"
    assert dict(types().lines())["KVM's VFIO device"] == "yes, groups 12"
    data = types().to_json()
    assert data["guest_pat"] == "quirk" and "IGNORE_GUEST_PAT" in data["quirks"] and data["duty"] == types().duty()


@pytest.mark.kvm
def test_the_host_measures_what_the_calls_say(kvm: Kvm) -> None:
    measured = measure(kvm).facts.memory_types
    assert measured.quirks == kvm.check_extension(lib.KVM_CAP_DISABLE_QUIRKS2)
    assert (measured.flush_instruction, measured.line_size) == (coherence.instruction(), coherence.line_size())
    with kvm.create_vm() as vm:
        assert device_type_answers(vm, lib.KVM_DEV_TYPE_VFIO) is measured.vfio
        assert not device_type_answers(vm, 4096)


# Clauses about hosts that this one may not be: forged facts, and a kernel that behaves like that host's


def run(kvm: Kvm, identifier: str, interposer: Interposer, **facts: Any) -> ClauseResult:
    """Run a clause on forged facts; skips where no caches are visible."""
    host = measure(kvm)
    forged = replace(host, facts=replace(host.facts, memory_types=types(**facts)))
    (clause,) = [found for found in all_clauses() if found.id == identifier]
    result = execute(clause, forged, Options(time_scale=5.0), interposer=interposer)
    if "no cache is visible" in result.reason:
        pytest.skip(result.reason)
    return result


def honouring(call: Call, proceed: Proceed) -> int:
    """A KVM that takes the quirk of PAT away, and whose loads and stores show it."""
    if call.name == "KVM_ENABLE_CAP" and call.argument.args[0] == Quirk.IGNORE_GUEST_PAT:
        return 0
    return proceed()


def slow_types() -> Interposer:
    """UC, UC- and WC loads are slow, and so are UC stores."""
    return both(
        honouring,
        timed("loads", 40, MemoryType.UC, MemoryType.UC_MINUS, MemoryType.WC),
        timed("stores", 40, MemoryType.UC, MemoryType.UC_MINUS),
    )


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("identifier", "kind"),
    [("pat.quirk-disabled-honoured", "quirk"), ("pat.amd-honoured", "honoured")],
)
def test_a_kvm_that_honours_pat_passes_and_one_that_ignores_it_fails(kvm: Kvm, identifier: str, kind: str) -> None:
    assert run(kvm, identifier, slow_types(), guest_pat=GuestPat(kind)).verdict is Verdict.PASS
    ignoring = run(kvm, identifier, honouring, guest_pat=GuestPat(kind))
    if measure(kvm).facts.memory_types.guest_pat is GuestPat.IGNORED:
        assert ignoring.verdict is Verdict.FAIL and "UC loads to those of WB" in ignoring.what
        assert run(kvm, identifier, honouring, guest_pat=GuestPat(kind), nested=True).verdict is Verdict.SKIP


def disturbed(entry: str, every: int) -> Interposer:
    """A machine on which, from the 20th timed run on, one of ``every`` runs of an entry point is 40 times slower."""
    count = 0

    def slow(shared: Shared) -> None:
        nonlocal count
        count += 1
        if count > 20 and count % every == 0:
            shared.set("values", shared.get("values") * 40)

    return after_entry(entry, slow, payload="memtype")


@pytest.mark.kvm
@pytest.mark.parametrize("every", [2, 3, 5, 7])
@pytest.mark.parametrize("identifier", ["pat.quirk-default-wb", "mtrr.no-effect", "cr0cd.no-effect-intel"])
def test_a_host_that_is_disturbed_fails_no_clause(kvm: Kvm, identifier: str, every: int) -> None:
    if measure(kvm).facts.memory_types.guest_pat is not GuestPat.IGNORED:
        pytest.skip("this KVM honours PAT, so it cannot stand in for one that ignores it")
    result = run(kvm, identifier, disturbed("loads", every), guest_pat=GuestPat.IGNORED)
    assert result.verdict in (Verdict.SKIP, Verdict.PASS), result


@pytest.mark.kvm
def test_a_coarse_time_stamp_counter_is_a_skip(kvm: Kvm) -> None:
    coarse = after_entry("loads", lambda shared: shared.set("values", 0), payload="memtype")
    result = run(kvm, "mtrr.no-effect", coarse)
    assert result.verdict is Verdict.SKIP and "took 0 ticks" in result.reason


@pytest.mark.kvm
def test_cr0_cd_is_not_judged_on_amd_where_its_quirk_is_gone(kvm: Kvm) -> None:
    host = measure(kvm)
    facts = replace(host.facts, backend="kvm_amd", memory_types=types(quirks=1))
    (clause,) = [found for found in all_clauses() if found.id == "cr0cd.no-effect-intel"]
    result = execute(clause, replace(host, facts=facts), Options(time_scale=5.0))
    assert result.verdict is Verdict.SKIP and "without CD_NW_CLEARED" in result.reason


class Group:
    """A KVM with one VFIO group: ADD and DEL as the kernel has them, slow uncached pages while it is added."""

    def __init__(self) -> None:
        self.added: set[int] = set()
        self.slow = timed("loads", 40, MemoryType.UC)

    def __call__(self, call: Call, proceed: Proceed) -> int:
        if call.name == "KVM_CREATE_DEVICE":
            self.added.clear()  # the device before it is gone, and its groups with it
        if call.name == "KVM_SET_DEVICE_ATTR":
            fd = int(ffi.cast("int *", call.argument.addr)[0])
            return self._add(fd) if call.argument.attr == lib.KVM_DEV_VFIO_GROUP_ADD else self._remove(fd)
        # It has to see all calls to know where memory lies; runs alone are lied about.
        return self.slow(call, proceed) if self.added or call.name != "KVM_RUN" else proceed()

    def _add(self, fd: int) -> int:
        if fd in self.added:
            return -errno.EEXIST
        self.added.add(fd)
        return 0

    def _remove(self, fd: int) -> int:
        if fd not in self.added:
            return -errno.ENOENT
        self.added.remove(fd)
        return 0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of VFIO groups with one in it that has no IOMMU."""
    monkeypatch.setattr(dev_rules, "VFIO_FOLDER", tmp_path)
    (tmp_path / "noiommu-0").touch()
    return tmp_path


@pytest.mark.kvm
def test_a_vfio_group_that_behaves_passes_and_one_that_does_not_fails(kvm: Kvm, folder: Path) -> None:
    facts = {"groups": ("noiommu-0",)}
    assert run(kvm, "dev.vfio-files", Group(), **facts).verdict is Verdict.PASS

    twice = run(kvm, "dev.vfio-files", answer("KVM_SET_DEVICE_ATTR", 0), **facts)
    assert (twice.verdict, twice.what) == (Verdict.FAIL, "ADD of the same group")


@pytest.mark.kvm
def test_a_non_coherent_group_without_effect_fails(kvm: Kvm, folder: Path) -> None:
    facts = {"groups": ("noiommu-0",)}
    if measure(kvm).facts.memory_types.guest_pat is not GuestPat.IGNORED:
        pytest.skip("this KVM honours PAT, so it cannot stand in for one that ignores it")
    assert run(kvm, "dev.vfio-coherent", Group(), **facts).verdict is Verdict.PASS

    assert run(kvm, "dev.vfio-coherent", answer("KVM_SET_DEVICE_ATTR", 0), **facts).verdict is Verdict.FAIL
    (folder / "12").touch()
    recorded = run(kvm, "dev.vfio-coherent", Group(), groups=("12",))
    assert recorded.verdict is Verdict.PASS and any(note.startswith("with group 12") for note in recorded.notes)


@pytest.mark.kvm
def test_a_group_that_cannot_be_opened_is_a_skip(kvm: Kvm, folder: Path) -> None:
    result = run(kvm, "dev.vfio-files", Group(), groups=("99",))
    assert result.verdict is Verdict.SKIP and "99 could not be opened: No such file" in result.reason


@pytest.mark.kvm
def test_what_a_quirk_that_is_disabled_late_does_is_recorded(kvm: Kvm) -> None:
    result = run(kvm, "pat.quirk-late", slow_types(), guest_pat=GuestPat.QUIRK)
    assert result.verdict is Verdict.INFO
    assert [note.split(":")[0] for note in result.notes[1:]] == [
        "before", "disabled", "after the memslot was set again",
    ]  # fmt: skip
    assert all(note.endswith("UC pages are uncached") for note in result.notes[1:])


@pytest.mark.kvm
def test_cache_disable_on_amd_passes_only_where_it_slows_the_guest_down(kvm: Kvm) -> None:
    def with_quirk(lie: Interposer) -> Interposer:
        return lambda call, proceed: 0 if call.name == "KVM_ENABLE_CAP" else lie(call, proceed)

    facts = {"guest_pat": GuestPat.HONOURED}
    slow = run(kvm, "cr0cd.amd-honoured", with_quirk(cache_disable_slows_the_guest_down()), **facts)
    assert slow.verdict is Verdict.PASS
    if measure(kvm).facts.memory_types.guest_pat is GuestPat.IGNORED:
        fast = run(kvm, "cr0cd.amd-honoured", with_quirk(lambda call, proceed: proceed()), **facts)
        assert fast.verdict is Verdict.FAIL
    absent = run(kvm, "cr0cd.amd-honoured", honouring, quirks=1, **facts)
    assert absent.verdict is Verdict.SKIP and "without CD_NW_CLEARED" in absent.reason
