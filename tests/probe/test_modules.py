# SPDX-License-Identifier: Apache-2.0
"""Which KVM answers on an x86 host, what its modules were told, and what the facts say where nothing answers."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.patience import LIMIT
from tests.probe import seccomp
from vmm._kvm import lib
from vmm.arch import ARCHITECTURE
from vmm.kvm import ioctl as door
from vmm.kvm.ioctl import Call, KvmError
from vmm.kvm.system import Kvm
from vmm.probe.x86 import facts, modules
from vmm.x86 import cpuid, msr
from vmm.x86.cpuid import Cpuid, Entry

pytestmark = pytest.mark.skipif(
    ARCHITECTURE != "x86", reason=f"kvm_intel and kvm_amd are x86's; this is {ARCHITECTURE}"
)

BOTH = frozenset({"kvm", "kvm_intel", "kvm_amd"})
NOTHING = {"KVM_CAP_X86_SMM": 0, "KVM_CAP_NESTED_STATE": 0}
SMM, NESTED = NOTHING | {"KVM_CAP_X86_SMM": 1}, NOTHING | {"KVM_CAP_NESTED_STATE": 4096}


@pytest.mark.parametrize(
    ("found", "present", "offered", "expected"),
    [
        # Both vendors' modules are built in, which gives both a folder on every CPU.
        ("VMX", BOTH, SMM, "kvm_intel"),
        ("SVM", BOTH, SMM, "kvm_amd"),
        ("VMX", BOTH, NOTHING, "kvm_intel"),
        # No /sys: what answers decides.
        ("VMX", None, SMM, "kvm_intel"),
        ("SVM", None, NESTED, "kvm_amd"),
        ("VMX", None, NOTHING, "kvm_pvm"),
        ("", None, SMM, "kvm_pvm"),
        # kvm_pvm beside a vendor's module, of which one answers.
        ("VMX", BOTH | {"kvm_pvm"}, NESTED, "kvm_intel"),
        ("VMX", BOTH | {"kvm_pvm"}, NOTHING, "kvm_pvm"),
        ("SVM", {"kvm", "kvm_amd", "kvm_pvm"}, SMM, "kvm_amd"),
        # A CPU with the extension whose module was not loaded, or not for this vendor.
        ("VMX", {"kvm", "kvm_pvm"}, NOTHING, "kvm_pvm"),
        ("SVM", {"kvm", "kvm_intel", "kvm_pvm"}, NOTHING, "kvm_pvm"),
        # Neither extension.
        ("", {"kvm", "kvm_pvm"}, NOTHING, "kvm_pvm"),
        ("", BOTH | {"kvm_pvm"}, NOTHING, "kvm_pvm"),
        ("", BOTH, NOTHING, "unknown"),
        ("", {"kvm", "kvm_other"}, NESTED, "unknown"),
    ],
)
def test_the_back_end_is_the_module_that_can_answer(
    found: str, present: frozenset[str] | None, offered: dict[str, int], expected: str
) -> None:
    assert modules.backend(found, present, offered) == expected


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make this CPU answer CPUID with given entries, and with zeros elsewhere."""

    def become(*entries: Entry) -> None:
        monkeypatch.setattr(cpuid, "host", Cpuid(entries).get)

    return become


def test_the_extension_is_read_from_cpuid_and_not_from_the_vendor(cpu: Callable[..., None]) -> None:
    cpu(Entry(1, ecx=1 << 5))
    assert modules.extension() == "VMX"
    cpu(Entry(0x80000000, eax=0x80000008), Entry(0x80000001, ecx=1 << 2))
    assert modules.extension() == "SVM"
    cpu(Entry(0x80000000, eax=0x80000000), Entry(0x80000001, ecx=1 << 2))
    assert modules.extension() == "", "a leaf above the highest says nothing"
    cpu()
    assert modules.extension() == ""


def test_a_hypervisor_is_known_by_its_leaf(cpu: Callable[..., None]) -> None:
    signature = Entry(0x40000000, eax=0x40000001, ebx=0x4B4D564B, ecx=0x564B4D56, edx=0x4D)
    cpu(Entry(1, ecx=1 << 31), signature)
    assert modules.hypervisor() == "KVMKVMKVM"
    cpu(Entry(1), signature)
    assert modules.hypervisor() == "", "without the bit the leaf is that of a CPU that does not have it"
    cpu(Entry(1, ecx=1 << 31), Entry(0x40000000, ebx=0x54474354, ecx=0x43544743, edx=0x47435447))
    assert modules.hypervisor() == "TCGTCGTCGTCG"


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    assert modules.loaded(tmp_path / "absent") is None
    assert modules.loaded(tmp_path) == frozenset()
    for name in ("kvm", "kvm_amd", "kvm_other", "kvmgt", "ext4"):
        (tmp_path / name).mkdir()
    assert modules.loaded(tmp_path) == frozenset({"kvm", "kvm_amd", "kvm_other"})


def test_parameters_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    assert modules.parameters(tmp_path / "absent") == {}
    for module, name, text in (
        ("kvm", "ignore_msrs", "Y\n"),
        ("kvm_intel", "ept", "N\n"),
        ("kvm_amd", "other", "1\n"),
    ):
        (tmp_path / module / "parameters").mkdir(parents=True)
        (tmp_path / module / "parameters" / name).write_text(text)
    (tmp_path / "kvm" / "parameters" / "tdp_mmu").mkdir()  # a read that fails
    assert modules.parameters(tmp_path) == {"kvm.ignore_msrs": "Y", "kvm_intel.ept": "N"}


class Answering:
    """A /dev/kvm whose KVM_GET_MSRS knows these MSRs, or fails with an errno."""

    def __init__(self, known: dict[int, int] | None = None, errno: int = 0) -> None:
        self.known, self.errno = known or {}, errno

    def ioctl(self, request: int, value: Any) -> int:
        assert request == lib.KVM_GET_MSRS and value.nmsrs == 1
        if self.errno:
            raise KvmError("KVM_GET_MSRS", self.errno)
        entry = value.entries[0]
        if entry.index not in self.known:
            return 0
        entry.data = self.known[entry.index]
        return 1


def test_a_kvm_that_reads_an_unknown_msr_ignores_unknown_msrs() -> None:
    answering: Any = Answering({msr.UNKNOWN_MSR: 0})
    strict: Any = Answering({0x48B: 1})
    old: Any = Answering(errno=errno.EINVAL)
    assert msr.ignores_unknown(answering)
    assert not msr.ignores_unknown(strict) and not msr.ignores_unknown(old)


EPT, NO_EPT = {0x48B: 0x2 << 32 | 0x10}, {0x48B: 0x10 << 32}
NESTED_AMD = Entry(0x80000001, ecx=1 << 2)


@pytest.mark.parametrize(
    ("backend", "told", "msrs", "entries", "expected"),
    [
        ("kvm_pvm", {"kvm_intel.ept": "Y"}, EPT, (), False),
        ("kvm_intel", {"kvm_intel.ept": "Y"}, {}, (), True),
        ("kvm_intel", {"kvm_intel.ept": "N", "kvm_amd.npt": "Y"}, EPT, (), False),
        ("kvm_amd", {"kvm_amd.npt": "1"}, {}, (), True),
        ("kvm_amd", {"kvm_amd.npt": "0"}, {}, (NESTED_AMD, Entry(0x8000000A, edx=1)), False),
        # No parameter is shown: what a nested hypervisor may use does.
        ("kvm_intel", {}, EPT, (), True),
        ("kvm_intel", {}, NO_EPT, (), False),
        ("kvm_amd", {}, {}, (NESTED_AMD, Entry(0x8000000A, edx=1)), True),
        ("kvm_amd", {}, {}, (NESTED_AMD, Entry(0x8000000A, edx=8)), False),
        # Nor is there nested virtualization.
        ("kvm_intel", {}, {}, (), None),
        ("kvm_intel", {}, {0x48B: 0}, (), None),
        ("kvm_amd", {}, EPT, (Entry(0x8000000A, edx=1),), None),
        ("unknown", {"kvm_intel.ept": "Y"}, EPT, (NESTED_AMD, Entry(0x8000000A, edx=1)), None),
    ],
)
def test_a_second_level_is_what_a_parameter_or_kvm_itself_shows(
    backend: str, told: dict[str, str], msrs: dict[int, int], entries: tuple[Entry, ...], expected: bool | None
) -> None:
    answering: Any = Answering(msrs)
    assert modules.two_levels(answering, backend, told, Cpuid(entries)) is expected


@pytest.mark.kvm
def test_what_kvm_shows_of_its_tables_is_what_its_parameter_says(kvm: Kvm) -> None:
    measured = facts.measure(kvm)
    shown = modules.two_levels(kvm, measured.backend, {}, measured.cpuid)
    assert shown in (None, measured.memory_types.two_levels)


# Calls that are refused


@contextmanager
def refusing(**refusals: int) -> Iterator[None]:
    """Have calls fail with an errno, by their names."""

    def interposer(call: Call, proceed: Callable[[], int]) -> int:
        return -refusals[call.name] if call.name in refusals else proceed()

    with door.interpose(interposer):
        yield


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EINVAL, "this kernel has no ARCH_GET_XCOMP_SUPP (EINVAL)"),
        (errno.EPERM, "ARCH_GET_XCOMP_SUPP fails with EPERM: something, such as a seccomp policy, keeps"),
        (errno.ENOSYS, "ARCH_GET_XCOMP_SUPP fails with ENOSYS: something, such as a seccomp policy, keeps"),
        (errno.EACCES, "ARCH_GET_XCOMP_SUPP fails with EACCES: something, such as a seccomp policy, keeps"),
    ],
)
def test_a_call_that_is_forbidden_is_not_called_missing(kvm: Kvm, number: int, said: str) -> None:
    with refusing(ARCH_GET_XCOMP_SUPP=number):
        measured = facts.measure(kvm)
    assert measured.xcomp_supported is None
    assert measured.refusals == {**facts.measure(kvm).refusals, "xcomp_supported": errno.errorcode[number]}
    assert measured.answer("xcomp_supported").startswith(said)
    assert dict(measured.lines())["host may grant (ARCH_GET_XCOMP_SUPP)"].startswith(said)


@pytest.mark.kvm
def test_a_kvm_without_attributes_is_told_apart_from_one_that_may_not_be_asked(kvm: Kvm) -> None:
    for number in (errno.ENXIO, errno.ENOTTY, errno.ENODEV):
        with refusing(KVM_GET_DEVICE_ATTR=number):
            assert "has no KVM_X86_XCOMP_GUEST_SUPP" in facts.measure(kvm).answer("guest_supported")
    with refusing(KVM_GET_DEVICE_ATTR=errno.EPERM):
        measured = facts.measure(kvm)
    assert "KVM_X86_XCOMP_GUEST_SUPP fails with EPERM" in measured.answer("guest_supported")
    assert not measured.supports("FP"), "what may not be asked is not supported"


@pytest.mark.kvm
def test_an_answer_names_the_components(kvm: Kvm) -> None:
    measured = replace(facts.measure(kvm), xcomp_supported=7, refusals={})
    assert measured.answer("xcomp_supported") == "ARCH_GET_XCOMP_SUPP is 0x7 (FP SSE YMM)"


# Run in a child: the filter cannot be taken off again.
_MEASURE = """
import json, sys
from tests.probe import seccomp
seccomp.deny_xcomp(int(sys.argv[1]))
from vmm.kvm.system import Kvm
from vmm.probe.x86 import facts
with Kvm() as kvm:
    measured = facts.measure(kvm)
print(json.dumps([measured.refusals, measured.answer("xcomp_supported"), measured.answer("xcomp_guest_permitted")]))
"""
_CHECK = """
import sys
from tests.probe import seccomp
seccomp.deny_xcomp(int(sys.argv[1]))
from vmm.cli import main
sys.argv = ["vmm", "check", "--format", "json", "perm.*", "cet.guest-only-xfeature", "xsave.fresh-init"]
main()
"""


def _under_seccomp(program: str, number: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, str(number)], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    if done.returncode == seccomp.UNAVAILABLE:
        pytest.skip(done.stderr.strip())
    assert done.returncode in (0, 4), done.stderr
    return done.stdout


@pytest.mark.kvm
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_a_seccomp_policy_is_not_taken_for_an_old_kernel(kvm: Kvm, number: int) -> None:
    refusals, *answers = json.loads(_under_seccomp(_MEASURE, number))
    name = errno.errorcode[number]
    assert refusals["xcomp_supported"] == refusals["xcomp_guest_permitted"] == name
    assert all(f"fails with {name}: something, such as a seccomp policy" in answer for answer in answers)


@pytest.mark.kvm
def test_under_a_seccomp_policy_clauses_about_permission_are_skipped_with_its_errno(kvm: Kvm) -> None:
    lines = [json.loads(line) for line in _under_seccomp(_CHECK, errno.EPERM).splitlines()]
    results = {line["id"]: line for line in lines if "verdict" in line}
    assert results and not {line["verdict"] for line in results.values()} & {"FAIL", "ERROR", "TIMEOUT"}
    assert results["cet.guest-only-xfeature"]["verdict"] == "SKIP"
    assert "ARCH_GET_XCOMP_SUPP fails with EPERM" in results["cet.guest-only-xfeature"]["reason"]
