# SPDX-License-Identifier: Apache-2.0
"""What vmm compat says, against the kernels it speaks of: a recorded host's values written to a vCPU there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.data.probes import document, offer
from tests.machines.machines import EVERY_KERNEL, NEWEST, Running, lab, probe_text, records
from vmm.compat.offer import Offer, Verdict
from vmm.compat.report import Report, compare
from vmm.compat.x86.msr_rules import FEATURE_MSRS
from vmm.x86.msr_names import name as msr_name

pytestmark = pytest.mark.machine
_KERNELS = ["6.1", "6.12", "7.2"] if EVERY_KERNEL else [NEWEST]
# Both programs write what each of several guests has, each to a vCPU of its own, and name what was refused.
_ARM64 = """
import json
from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import Register
from vmm.arm64.vcpu import Feature
from vmm.kvm.ioctl import KvmError
from vmm.kvm.system import Kvm

def refused(vm, asked):
    vcpu = vm.create_vcpu()
    vcpus.init(vcpu, *(Feature[name] for name in asked["features"]))
    vcpus.finalize(vcpu)
    for name, identifier, value in asked["values"]:
        try:
            vcpus.write(vcpu, Register(int(identifier, 16)), int(value, 16))
        except KvmError:
            yield name
    listed = set(vcpu.reg_list())
    yield from (name for identifier, name in asked["registers"] if int(identifier, 16) not in listed)
"""
_X86 = """
import json
from vmm.kvm.system import Kvm
from vmm.x86 import cpuid, msr, permission
from vmm.x86.cpuid import Cpuid, Entry

permission.request_guest(18)

def refused(vm, asked):
    vcpu = vm.create_vcpu()
    cpuid.set_cpuid(vcpu, Cpuid(Entry(*row) for row in asked["cpuid"]))
    yield from (index for index, value in asked["msrs"] if not msr.set_msr(vcpu, index, int(value, 16)))
"""
_EACH = """
with Kvm() as kvm:
    for asked in json.load(open("/in/asked")):
        with kvm.create_vm() as vm:
            print(json.dumps({"refused": list(refused(vm, asked))}))
"""
_ARM64_DIMENSIONS = {"ID registers", "caches", "firmware registers", "register list"}
_SUBLEAVES = (4, 7, 0xB, 0xD, 0x12, 0x14, 0x1D, 0x1E, 0x1F, 0x24, 0x8000001D)


def told(machine: str, kernel: str, program: str, asked: Sequence[dict[str, Any]], folder: Path) -> list[set[Any]]:
    """What a program in a machine names for each that it is ``asked``."""
    (folder / "asked").write_text(json.dumps(asked))
    command = ["python3", "-c", program + _EACH]
    return [
        set(found["refused"])
        for found in records(lab(machine, "--kernel", kernel, "--in", str(folder), command=command))
    ]


def named(report: Report, dimensions: set[str], verdicts: set[Verdict]) -> set[str]:
    """The registers in the findings of some dimensions: the first word of a field, several of a list."""
    return {
        word.split(".")[0]
        for dimension in report.dimensions
        if dimension.name in dimensions
        for finding in dimension.findings
        if finding.verdict in verdicts
        for word in finding.name.split()
    }


def arm64_state(made: dict[str, Any], guest: Offer) -> dict[str, Any]:
    """The ID, implementation, cache and firmware registers of a guest, and the list of all that it has.

    ``made`` is the probe of the host that the guest is from.
    """
    identifiers = {name: identifier for identifier, name in made["registers"].items()}
    sections = {"id": "id_registers", "firmware": "firmware", "cache": "caches", "implementation": "implementation"}
    names = [(f"{prefix}.{name}", name) for prefix, section in sections.items() for name in made[section]]
    kept = [(key, name) for key, name in names if not guest.get(f"left.{name}")]
    return {
        "features": made["vcpu_features"],
        "values": [(name, identifiers[name], f"{guest.get(key):#x}") for key, name in kept],
        "registers": [(i, name) for i, name in made["registers"].items() if not guest.get(f"left.{name}")],
    }


@pytest.mark.parametrize("kernel", _KERNELS)
def test_a_kernel_refuses_exactly_the_registers_that_compat_names(
    kernel: str, running: Running, tmp_path: Path
) -> None:  # fmt: skip
    cases, expected, asked = list(product(("sve-6.1", "sve-6.12", "sve-7.2", "sve-7.2-nvhe"), (False, True))), [], []
    for source, masked in cases:
        guest = offer(source)
        report = compare(guest, running.offer("sve", kernel))
        expected.append(named(report, _ARM64_DIMENSIONS, {Verdict.NO} if masked else {Verdict.NO, Verdict.MASK}))
        asked.append(arm64_state(document(source), guest.masked(report.masks) if masked else guest))
    found = told("sve", kernel, _ARM64, asked, tmp_path)
    assert dict(zip(cases, found, strict=True)) == dict(zip(cases, expected, strict=True))


def test_the_source_takes_the_values_that_compat_tells_it_to_write(running: Running, tmp_path: Path) -> None:
    guest, made = running.offer("sve", NEWEST), json.loads(probe_text("sve", NEWEST))
    masked = [guest.masked(compare(guest, offer(destination)).masks) for destination in ("sve-6.1", "sve-6.12")]
    asked = [arm64_state(made, each) for each in masked]
    assert told("sve", NEWEST, _ARM64, asked, tmp_path) == [set(), set()]


def x86_state(guest: Offer) -> dict[str, Any]:
    """CPUID and feature MSRs of a guest, but for those that KVM derives from others."""
    leaves: dict[tuple[int, int], list[int]] = {}
    for key in guest.keys("cpuid."):
        _, leaf, subleaf, _ = key.split(".")
        leaves.setdefault((int(leaf, 16), int(subleaf)), []).append(guest.get(key))
    rows = [(leaf, subleaf, int(leaf in _SUBLEAVES), *values) for (leaf, subleaf), values in leaves.items()]
    numbers = {int(key.removeprefix("msr."), 16): guest.get(key) for key in guest.keys("msr.")}
    chosen = [(n, f"{value:#x}") for n, value in numbers.items() if n in FEATURE_MSRS and not FEATURE_MSRS[n].silent]
    return {"cpuid": rows, "msrs": chosen}


@pytest.mark.parametrize("kernel", _KERNELS)
def test_a_kernel_refuses_exactly_the_feature_msrs_that_compat_names(
    kernel: str, running: Running, tmp_path: Path
) -> None:  # fmt: skip
    cases, expected, asked = list(product(("amx-6.1", "amx-6.12", "amx-7.2"), (False, True))), [], []
    for source, masked in cases:
        guest = offer(source)
        report = compare(guest, running.offer("amx", kernel))
        expected.append(set() if masked else named(report, {"feature MSRs"}, {Verdict.NO, Verdict.MASK}))
        asked.append(x86_state(guest.masked(report.masks) if masked else guest))
    found = [set(map(msr_name, each)) for each in told("amx", kernel, _X86, asked, tmp_path)]
    assert dict(zip(cases, found, strict=True)) == dict(zip(cases, expected, strict=True))
