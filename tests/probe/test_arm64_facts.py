# SPDX-License-Identifier: Apache-2.0
"""What is measured of an arm64 host: its mode, its CPUs, its log, whether a guest runs; and who needs that."""

from __future__ import annotations

import ast
import errno
import inspect
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import vmm.kvm.system
from tests.probe.recorded_hosts import recorded
from vmm._kvm import lib
from vmm.conformance import expectations
from vmm.conformance.model import ClauseResult, Verdict
from vmm.conformance.needs import unmet
from vmm.conformance.registry import all_clauses
from vmm.kvm import ioctl as door
from vmm.kvm.system import Kvm
from vmm.probe.arm64 import facts, kernel_log
from vmm.probe.arm64.kernel_log import KernelLog, about_kvm

_CLAUSES = all_clauses("arm64")
_WARNING = "WARNING: CPU: 0 PID: {} at {}:1234 some_function+0x10/0x80"
_IPA_SIZE = 165


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in the place of /proc, and no kernel log."""
    monkeypatch.setattr(facts, "Path", lambda name: tmp_path / Path(name).name)
    monkeypatch.setattr(kernel_log, "_DEVICE", str(tmp_path / "kmsg"))
    yield tmp_path


@pytest.mark.parametrize(
    ("line", "mode"),
    [
        ("kvm [1]: VHE mode initialized successfully", "VHE"),
        ("kvm [1]: Hyp mode initialized successfully", "nVHE"),
        ("kvm [1]: Hyp nVHE mode initialized successfully", "nVHE"),
        ("kvm [1]: Hyp hVHE mode initialized successfully", "hVHE"),
        ("kvm [1]: Protected nVHE mode initialized successfully", "Protected nVHE"),
        ("kvm [1]: Protected hVHE mode initialized successfully", "Protected hVHE"),
        ("kvm [1]: VHE+NV2 mode initialized successfully", "VHE+NV2"),
    ],
)
def test_the_mode_is_what_the_kernel_logged(files: Path, line: str, mode: str) -> None:
    (files / "kmsg").write_text(f"6,300,1000,-;{line}\n")
    (files / "cmdline").write_text("kvm-arm.mode=protected")
    assert facts._mode() == mode


@pytest.mark.parametrize(
    ("arguments", "mode"),
    [
        ("root=/dev/vda kvm-arm.mode=protected quiet", "Protected nVHE"),
        ("kvm_arm.mode=nvhe", "nVHE"),
        ("kvm-arm.mode=nvhe kvm-arm.mode=nested", "VHE+NV2"),
        ("quiet", "EL2 mode unknown"),
    ],
)
def test_without_the_log_the_mode_is_what_the_kernel_was_told(files: Path, arguments: str, mode: str) -> None:
    (files / "cmdline").write_text(arguments)
    assert facts._mode() == mode


def test_the_cpus_are_those_of_cpuinfo(files: Path) -> None:
    cpu = "processor\t: {}\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: {}\nCPU part\t: {}\n"
    kinds = [("0x0", "0xd03"), ("0x1", "0xd07")]
    text = "".join(cpu.format(at, *kind) + "CPU revision\t: 2\n\n" for at, kind in enumerate(kinds))
    (files / "cpuinfo").write_text(text)
    assert facts._midrs() == [0x410FD032, 0x411FD072]


def test_a_missing_cpuinfo_gives_no_cpus(files: Path) -> None:
    assert facts._midrs() == []


@pytest.mark.parametrize(
    ("midrs", "errata"),
    [
        ((0x411FD072,), "834220"),  # Cortex-A57 r1p2
        ((0x410FD032, 0x410FD070), "834220"),  # beside a Cortex-A53
        ((0x411FD073,), ""),  # r1p3 is mended
        ((0x411FD082,), ""),  # Cortex-A72
        ((), ""),
    ],
)
def test_an_erratum_is_that_of_any_cpu_up_to_a_revision(midrs: tuple[int, ...], errata: str) -> None:
    assert replace(recorded("sve-7.2").facts, midrs=midrs).errata == errata


# --- the kernel's log -----------------------------------------------------------------------------


def test_a_warning_of_another_driver_is_not_kvms() -> None:
    lines = [
        _WARNING.format(77, "drivers/net/card.c"),
        "CPU: 0 PID: 77 Comm: irq/card",
        "Call trace:",
        " card_poll+0x10/0x80",
        "---[ end trace 0000000000000000 ]---",
        "kvm_something unrelated, later",
    ]
    assert about_kvm(lines) == []


@pytest.mark.parametrize("file", ["arch/arm64/kvm/sys_regs.c", "virt/kvm/kvm_main.c", "arch/arm64/kernel/fpsimd.c"])
def test_a_warning_in_a_file_of_kvm_is_kvms(file: str) -> None:
    assert about_kvm(["hello", _WARNING.format(77, file)]) == [_WARNING.format(77, file)]


def test_a_warning_below_kvm_is_kvms() -> None:
    lines = [_WARNING.format(77, "mm/memory.c"), "Call trace:", " kvm_handle_guest_abort+0x10/0x80"]
    assert about_kvm(lines) == lines[:1]


def test_a_warning_of_this_process_counts_wherever_it_is() -> None:
    line = _WARNING.format(77, "mm/memory.c")
    assert about_kvm([line], [77]) == [line]
    assert about_kvm([line], [7]) == []


def test_what_the_next_warning_says_is_not_taken_for_the_one_before() -> None:
    lines = [_WARNING.format(1, "drivers/a.c"), _WARNING.format(1, "virt/kvm/kvm_main.c")]
    assert about_kvm(lines) == lines[1:]


def test_the_log_gives_each_records_first_line(files: Path) -> None:
    (files / "kmsg").write_text("4,7,1,-;WARNING: it\n SUBSYSTEM=pci\n")
    with KernelLog() as log:
        assert list(log.lines()) == ["WARNING: it"]
    with KernelLog(new=True) as log:
        assert list(log.lines()) == []


def test_opening_a_missing_log_is_an_error(files: Path) -> None:
    with pytest.raises(OSError):
        KernelLog()


# --- whether a guest runs -------------------------------------------------------------------------


def _calls(tree: ast.AST) -> set[str]:
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return {node.id for node in nodes}


def _makes_a_guest() -> set[str]:
    """The functions of the clauses' modules that make a guest, by themselves or through others of their module."""
    found: set[str] = set()
    modules = {clause.function.__module__ for clause in _CLAUSES}
    for module in modules:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
        uses = {node.name: _calls(node) for node in tree.body if isinstance(node, ast.FunctionDef)}
        makers = {"sve_guest", "plain_guest"}
        while more := {name for name, used in uses.items() if used & makers} - makers:
            makers |= more
        found |= {f"{module}.{name}" for name in makers}
    return found


def test_every_clause_that_makes_a_guest_needs_one_that_runs() -> None:
    makers = _makes_a_guest()
    making = [c for c in _CLAUSES if f"{c.function.__module__}.{c.function.__name__}" in makers]
    assert len(making) > 40
    assert [c.id for c in making if "a guest that runs" not in map(str, c.needs)] == []


def test_where_no_guest_runs_one_clause_says_so() -> None:
    host = recorded("sve-7.2")
    stuck = replace(host, facts=replace(host.facts, guest="its first instructions end in Deadline()"))
    reasons = {c.id: unmet(c.needs, stuck) for c in _CLAUSES}
    assert reasons["guest.runs"] is None
    assert reasons["vm.mmio-exit"] == "needs a guest that runs: its first instructions end in Deadline()"
    assert sum(reason is not None for reason in reasons.values()) > 40


@pytest.mark.parametrize(
    ("kernel", "midr", "verdict"),
    [
        ("7.2.13", 0x411FD072, Verdict.KNOWN),
        ("7.2.13", 0x411FD073, Verdict.TIMEOUT),
        ("6.12.117", 0x411FD072, Verdict.TIMEOUT),
    ],
)
def test_a_guest_that_hangs_is_known_only_with_the_erratum(kernel: str, midr: int, verdict: Verdict) -> None:
    host = recorded("sve-7.2")
    host = replace(host, kernel=kernel, upstream=kernel, facts=replace(host.facts, midrs=(midr,)))
    result = ClauseResult("guest.runs", Verdict.TIMEOUT, "", reason="the guest did not leave in time")
    assert expectations.apply(result, expectations.load(host)).verdict is verdict


# --- the size of addresses ------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "kind"), [(36, 36), (40, 0), (48, 0), (0, 0)])
def test_a_vm_has_a_machine_type_that_this_host_has(monkeypatch: pytest.MonkeyPatch, bits: int, kind: int) -> None:
    monkeypatch.setattr(vmm.kvm.system, "ARCHITECTURE", "arm64")
    asked = []

    def kernel(call: door.Call, proceed: object) -> int:
        if call.name == "KVM_GET_API_VERSION":
            return int(lib.KVM_API_VERSION)
        if call.name == "KVM_CHECK_EXTENSION":
            assert call.argument == _IPA_SIZE
            return bits
        asked.append(call.argument)
        return -errno.EBUSY

    with door.interpose(kernel), Kvm(os.devnull) as kvm, pytest.raises(door.KvmError):
        kvm.create_vm()
    assert asked == [kind]
