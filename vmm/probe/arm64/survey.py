# SPDX-License-Identifier: Apache-2.0
"""The long answer of ``vmm probe --json`` on arm64: everything that decides whether a guest can come or go.

Besides the keys of vmm.probe.arm64.facts the document has, ids and register values as hexadecimal strings:

* ``capabilities``: also those that vmm.probe.arm64.facts leaves out.
* ``vcpu_features``: what the vCPU asked here was initialised with, that is, all that a 64-bit guest at EL1 can
  have of SVE, PMU_V3 and pointer authentication.
* ``ipa_bits``, ``page_size`` (bytes, the host's) and ``counter_hz``, CNTFRQ_EL0 as a guest reads it (null if the
  guest did not answer).
* ``id_registers``: each by name with ``value``, ``writable`` (the bits that a VMM may change before the first run)
  and ``fields``, those of ``value`` that are not 0, by name. ``writable_by`` says where ``writable`` is from:
  ``ioctl`` KVM_ARM_GET_REG_WRITABLE_MASKS, or ``measured``: each field was lowered by one and read back.
* ``implementation``: MIDR_EL1, REVIDR_EL1, AIDR_EL1. ``caches``: CLIDR_EL1 and CCSIDR by selector;
  ``caches_settable``: whether a VMM may describe other caches than the host's (measured; Linux 6.3 and later).
* ``firmware``: PSCI_VERSION, the levels of the workarounds, the bitmaps of hypercalls, those that there are.
* ``registers``: KVM_GET_REG_LIST of that vCPU, name by id; ``registers_plain``: the ids that a vCPU without any of
  those features has.

``fields`` and names are for people; a program compares ``value`` and ids.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.id_registers import REGISTERS, Field, IdRegister, Rule, mask_index, register_name
from vmm.arm64.registers import PC, SYSTEM, Group, Register, sysreg, x
from vmm.arm64.vcpu import Feature, read, write
from vmm.kvm.exits import MmioWrite
from vmm.kvm.ioctl import KvmError
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import VirtualMachine
from vmm.probe.arm64.facts import Facts

__all__ = ["CAPABILITIES", "lines", "survey"]

# Numbers of <linux/kvm.h> that only the probe asks for.
CAPABILITIES = {
    "KVM_CAP_IRQCHIP": 0, "KVM_CAP_MAX_VCPU_ID": 128, "KVM_CAP_ARM_INJECT_SERROR_ESR": 158,
    "KVM_CAP_PTP_KVM": 198,
}  # fmt: skip
_OPTIONAL = {
    Feature.PMU_V3: ("KVM_CAP_ARM_PMU_V3",),
    Feature.SVE: ("KVM_CAP_ARM_SVE",),
    Feature.PTRAUTH_ADDRESS: ("KVM_CAP_ARM_PTRAUTH_ADDRESS", "KVM_CAP_ARM_PTRAUTH_GENERIC"),
    Feature.PTRAUTH_GENERIC: ("KVM_CAP_ARM_PTRAUTH_ADDRESS", "KVM_CAP_ARM_PTRAUTH_GENERIC"),
}
_DEFAULT_IPA = 40  # Documentation/virt/kvm/api.rst, 4.2: machine type 0
# The feature ID registers: op0 3, op1 0, CRn 0, CRm 1 to 7; and CTR_EL0.
_ID_SPACE = frozenset(sysreg(3, 0, 0, crm, op2) for crm in range(1, 8) for op2 in range(8)) | {SYSTEM["CTR_EL0"]}
# MRS X0, CNTFRQ_EL0; STR X0, [X1].
_TELL_CNTFRQ = (0xD53BE000, 0xF9000020)
_NOWHERE = 1 << 20  # a guest physical address without memory: a store to it is an exit
_SECONDS = 10.0


def survey(kvm: Kvm, facts: Facts) -> dict[str, Any]:
    """Return what the probe adds to ``facts``."""
    capabilities = facts.capabilities | {name: kvm.check_extension(number) for name, number in CAPABILITIES.items()}
    features = [Feature.PSCI_0_2, *(f for f, needs in _OPTIONAL.items() if all(capabilities[need] for need in needs))]
    bits = capabilities["KVM_CAP_ARM_VM_IPA_SIZE"] or _DEFAULT_IPA
    with kvm.create_vm() as vm:
        plain = _vcpu(vm, [Feature.PSCI_0_2]).reg_list()
    with kvm.create_vm() as vm:
        full = _full(vm, _vcpu(vm, features), bool(capabilities["KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES"]))
    return {
        "capabilities": capabilities,
        "vcpu_features": [feature.name for feature in features],
        "ipa_bits": bits,
        "page_size": os.sysconf("SC_PAGE_SIZE"),
        "counter_hz": _counter(kvm),
        **full,
        "registers_plain": [f"{identifier:#x}" for identifier in plain],
    }


def lines(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (name, value) pairs for people, of what :func:`survey` added."""
    hertz, registers = document["counter_hz"], len(document["registers"])
    writable = sum(int(entry["writable"], 16).bit_count() for entry in document["id_registers"].values())
    return [
        ("guest features", " ".join(document["vcpu_features"])),
        ("guest physical addresses", f"up to {document['ipa_bits']} bits"),
        ("counter (CNTFRQ_EL0)", "unknown" if hertz is None else f"{hertz} Hz"),
        ("ID registers", f"{len(document['id_registers'])}, {writable} bits writable ({document['writable_by']})"),
        ("registers of a vCPU", f"{registers}, {len(document['registers_plain'])} without those features"),
    ]


def _vcpu(vm: VirtualMachine, features: Iterable[Feature]) -> Vcpu:
    vcpu, chosen = vm.create_vcpu(), list(features)
    vcpus.init(vcpu, *chosen)
    if Feature.SVE in chosen:
        vcpus.finalize(vcpu)
    return vcpu


def _full(vm: VirtualMachine, vcpu: Vcpu, has_masks: bool) -> dict[str, Any]:
    """Return what a vCPU with all features tells about itself."""
    listed = [Register(identifier) for identifier in vcpu.reg_list()]
    values = {register: read(vcpu, register) for register in listed if register in _ID_SPACE}
    masks = vcpus.writable_masks(vm) if has_masks else None
    found: dict[str, Any] = {}
    for register, value in values.items():
        known = REGISTERS.get(register_name(register))
        if known is None and not value:
            continue  # an encoding that no CPU has given a meaning yet
        if masks is not None:
            writable = masks[mask_index(register.encoding)]
        else:
            writable = _writable(vcpu, register, value, known) if known else 0
        entry = {"value": f"{value:#x}", "writable": f"{writable:#x}"}
        found[register_name(register)] = {**entry, "fields": known.decode(value) if known else {}}
    groups = {group: [r for r in listed if r.group == group] for group in (Group.FIRMWARE, Group.BITMAP, Group.DEMUX)}
    firmware = [*groups[Group.FIRMWARE], *groups[Group.BITMAP]]
    return {
        "id_registers": found,
        "writable_by": "measured" if masks is None else "ioctl",
        "implementation": _hexadecimal(vcpu, (SYSTEM[name] for name in ("MIDR_EL1", "REVIDR_EL1", "AIDR_EL1"))),
        "caches": _hexadecimal(vcpu, (SYSTEM["CLIDR_EL1"], *groups[Group.DEMUX])),
        "caches_settable": any(_settable(vcpu, register) for register in groups[Group.DEMUX][:1]),
        "firmware": _hexadecimal(vcpu, firmware),
        "registers": {f"{register:#x}": register_name(register) for register in listed},
    }


def _writable(vcpu: Vcpu, register: Register, value: int, known: IdRegister) -> int:
    """Return the bits of those fields that KVM takes lowered by one."""
    return sum(field.mask for field in known.fields if _is_writable(vcpu, register, value, field))


def _is_writable(vcpu: Vcpu, register: Register, value: int, field: Field) -> bool:
    number = field.of(value)
    if not number or field.rule is not Rule.LOWER or (field.signed and number >> field.width - 1):
        return False
    lowered = value & ~field.mask | number - 1 << field.low
    try:
        write(vcpu, register, lowered)
        taken = read(vcpu, register) == lowered
        write(vcpu, register, value)
    except KvmError:
        return False
    return taken


def _settable(vcpu: Vcpu, register: Register) -> bool:
    """May a cache be described with lines of twice the length?"""
    value = read(vcpu, register)
    try:
        write(vcpu, register, value + 1)  # CCSIDR_EL1.LineSize is the lowest field, a logarithm
        taken = read(vcpu, register) != value
        write(vcpu, register, value)
    except KvmError:
        return False
    return taken


def _hexadecimal(vcpu: Vcpu, registers: Iterable[Register]) -> dict[str, str]:
    return {register.name: f"{read(vcpu, register):#x}" for register in registers}


def _counter(kvm: Kvm) -> int | None:
    """Let a guest read CNTFRQ_EL0, which KVM neither traps nor offers to its VMM.

    Two instructions that need neither an MMU nor a stack, instead of a payload: the ELF library would cost more
    than all the rest of the probe.
    """
    with kvm.create_vm() as vm:
        memory = vm.add_memory(os.sysconf("SC_PAGE_SIZE"))
        memory.write(0, b"".join(instruction.to_bytes(4, "little") for instruction in _TELL_CNTFRQ))
        vcpu = _vcpu(vm, [Feature.PSCI_0_2])
        write(vcpu, x(1), _NOWHERE)
        write(vcpu, PC, 0)
        try:
            exit = vcpu.run(_SECONDS)
        except KvmError:
            return None
        return exit.value if isinstance(exit, MmioWrite) and exit.address == _NOWHERE else None
