# SPDX-License-Identifier: Apache-2.0
"""What vmm compat says, against the kernels it speaks of: a recorded host's values written to a vCPU there."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import pytest

from tests.data.probes import document, offer
from tests.machines.machines import EVERY_KERNEL, NEWEST, Running, lab, probe_text
from vmm.compat.offer import Offer, Verdict
from vmm.compat.report import Report, compare
from vmm.compat.x86.msr_rules import FEATURE_MSRS
from vmm.x86.msr_names import name as msr_name

pytestmark = pytest.mark.machine
_KERNELS = ["6.1", "6.12", "7.2"] if EVERY_KERNEL else [NEWEST]
# Both programs read what they are asked to write from the text that stands for {packed}.
_UNPACK = 'import base64, json, zlib\nasked = json.loads(zlib.decompress(base64.b64decode("{packed}")))\n'
_ARM64 = """
from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import Register
from vmm.arm64.vcpu import Feature
from vmm.kvm.ioctl import KvmError
from vmm.kvm.system import Kvm
refused = []
with Kvm() as kvm, kvm.create_vm() as vm:
    vcpu = vm.create_vcpu()
    vcpus.init(vcpu, *(Feature[name] for name in asked["features"]))
    vcpus.finalize(vcpu)
    for name, identifier, value in asked["values"]:
        try:
            vcpus.write(vcpu, Register(int(identifier, 16)), int(value, 16))
        except KvmError:
            refused.append(name)
    listed = set(vcpu.reg_list())
refused += [name for identifier, name in asked["registers"] if int(identifier, 16) not in listed]
print(json.dumps(refused))
"""
_X86 = """
from vmm.kvm.system import Kvm
from vmm.x86 import cpuid, msr, permission
from vmm.x86.cpuid import Cpuid, Entry
permission.request_guest(18)
with Kvm() as kvm, kvm.create_vm() as vm:
    vcpu = vm.create_vcpu()
    cpuid.set_cpuid(vcpu, Cpuid(Entry(*row) for row in asked["cpuid"]))
    print(json.dumps([index for index, value in asked["msrs"] if not msr.set_msr(vcpu, index, int(value, 16))]))
"""
_SUBLEAVES = (4, 7, 0xB, 0xD, 0x12, 0x14, 0x1D, 0x1E, 0x1F, 0x24, 0x8000001D)


def told(machine: str, kernel: str, program: str, asked: dict[str, Any]) -> set[Any]:
    """What a program in a machine names, given ``asked``."""
    packed = base64.b64encode(zlib.compress(json.dumps(asked).encode(), 9)).decode()
    text = (_UNPACK + program).replace("{packed}", packed)
    return set(json.loads(lab(machine, "--kernel", kernel, command=["python3", "-c", text])))


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
@pytest.mark.parametrize("source", ["sve-6.1", "sve-6.12", "sve-7.2", "sve-7.2-nvhe"])
@pytest.mark.parametrize("masking", [False, True], ids=["as-it-is", "masked"])
def test_a_kernel_refuses_exactly_the_registers_that_compat_names(
    kernel: str, source: str, masking: bool, running: Running
) -> None:  # fmt: skip
    guest = offer(source)
    report = compare(guest, running.offer("sve", kernel))
    dimensions = {"ID registers", "caches", "firmware registers", "register list"}
    expected = named(report, dimensions, {Verdict.NO} if masking else {Verdict.NO, Verdict.MASK})
    state = arm64_state(document(source), guest.masked(report.masks) if masking else guest)
    assert told("sve", kernel, _ARM64, state) == expected


def test_the_source_takes_the_values_that_compat_tells_it_to_write(running: Running) -> None:
    guest, made = running.offer("sve", NEWEST), json.loads(probe_text("sve", NEWEST))
    for destination in ("sve-6.1", "sve-6.12"):
        masked = guest.masked(compare(guest, offer(destination)).masks)
        assert told("sve", NEWEST, _ARM64, arm64_state(made, masked)) == set()


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
@pytest.mark.parametrize("source", ["amx-6.1", "amx-6.12", "amx-7.2"])
@pytest.mark.parametrize("masking", [False, True], ids=["as-it-is", "masked"])
def test_a_kernel_refuses_exactly_the_feature_msrs_that_compat_names(
    kernel: str, source: str, masking: bool, running: Running
) -> None:  # fmt: skip
    guest = offer(source)
    report = compare(guest, running.offer("amx", kernel))
    expected = set() if masking else named(report, {"feature MSRs"}, {Verdict.NO, Verdict.MASK})
    state = x86_state(guest.masked(report.masks) if masking else guest)
    assert {msr_name(index) for index in told("amx", kernel, _X86, state)} == expected
