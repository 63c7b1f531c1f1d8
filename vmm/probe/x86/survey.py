# SPDX-License-Identifier: Apache-2.0
"""The long answer of ``vmm probe --json`` on x86: everything that decides whether a guest can come or go.

Besides the keys of vmm.probe.x86.facts the document has, numbers of 64 bits and ids as hexadecimal strings:

* ``signature``: family, model, stepping of the CPU (CPUID 1.EAX, executed).
* ``capabilities``: also those that vmm.probe.x86.facts leaves out.
* ``permission``: null where the host has no dynamic xfeature to grant. Else ``features`` (names), ``cpuid`` and
  ``xsave2``, that is, KVM_GET_SUPPORTED_CPUID and KVM_CAP_XSAVE2 of a process that has asked for all of them; or
  ``refused``, a sentence.
* ``xfeatures``: each component of XCR0 and IA32_XSS that a guest can have, by name: ``number``, ``size``,
  ``offset`` in the standard format (0 for supervisor components), ``supervisor``, ``aligned`` (64 bytes in the
  compacted format), ``xfd`` (IA32_XFD can disable it). ``xfd``: the mask of the latter.
* ``amx``: null, or ``max_palette``, ``palettes`` by number, ``tmul_maxk`` and ``tmul_maxn``.
* ``cpuid_forced``: bits that a vCPU's CPUID has although KVM_SET_CPUID2 cleared every feature: none on a KVM that
  lets its VMM choose.
* ``msrs``: KVM_GET_MSR_INDEX_LIST. ``msrs_unlisted``: further ones that a vCPU with all features lets be read and
  written back. ``feature_msrs``: name and value of each MSR of KVM_GET_MSR_FEATURE_INDEX_LIST.
* ``tsc``: ``khz`` that a new vCPU runs with (null if KVM does not say) and ``scaling``.

``xfeatures``, ``xfd`` and ``amx`` say in words what ``cpuid`` holds; a program compares ``cpuid``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from vmm._kvm import lib
from vmm.kvm.bits import bits
from vmm.kvm.ioctl import KvmError
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.probe.x86.facts import Facts
from vmm.x86 import cpuid, msr, permission, xfeature
from vmm.x86.cpuid import REGISTERS, Cpuid, Entry
from vmm.x86.cpuid_names import BITS, RUNTIME
from vmm.x86.fields import TileInfo, TmulInfo
from vmm.x86.msr_names import KNOWN
from vmm.x86.msr_names import name as msr_name

__all__ = ["CAPABILITIES", "lines", "survey"]

# Numbers of <linux/kvm.h> that only the probe asks for.
CAPABILITIES = {
    "KVM_CAP_MP_STATE": 14, "KVM_CAP_ADJUST_CLOCK": 39, "KVM_CAP_VCPU_EVENTS": 41, "KVM_CAP_DEBUGREGS": 50,
    "KVM_CAP_TSC_CONTROL": 60, "KVM_CAP_TSC_DEADLINE_TIMER": 72,
    "KVM_CAP_MAX_VCPU_ID": 128, "KVM_CAP_X2APIC_API": 129, "KVM_CAP_PMU_CAPABILITY": 212,
    "KVM_CAP_VM_TSC_CONTROL": 214, "KVM_CAP_X86_NOTIFY_VMEXIT": 219,
}  # fmt: skip

_TSC_CONTROL = CAPABILITIES["KVM_CAP_TSC_CONTROL"]
_CHILD_SECONDS = 30.0
# Size and offset of the components that have no subleaf: SDM volume 1, 13.4.1 "Legacy region".
_LEGACY = {0: (160, 0), 1: (256, 160)}
# ECX of a component's subleaf: SDM volume 2, CPUID leaf 0xD.
_XFD = 1 << 2
_FLAGS = {"supervisor": 1 << 0, "aligned": 1 << 1, "xfd": _XFD}
_CHOSEN_XFEATURES = 0xFFFFFFFC  # of XCR0: x87 and SSE are always there
_PALETTES = 15  # more palettes than that no CPU has, and TILECFG could name


def survey(kvm: Kvm, facts: Facts) -> dict[str, Any]:
    """Return what the probe adds to ``facts``; the guest permission is asked for in a child process.

    The request is for the whole process and for good, and so is the lock that a vCPU puts on it. A process that
    has made a vCPU gets ``refused`` there.
    """
    listed = msr.index_list(kvm)
    dynamic = (facts.xcomp_supported or 0) & xfeature.DYNAMIC
    child = _in_child(lambda: _measure_for_good(dynamic, listed))
    packed = bytes.fromhex(child.get("cpuid", ""))
    table = Cpuid.unpack(packed) if packed else facts.cpuid
    return {
        "signature": _signature(),
        "capabilities": facts.capabilities | _capabilities(kvm),
        "permission": _permission(child, table) if dynamic else None,
        "xfeatures": _xfeatures(table),
        "xfd": sum(1 << number for number in _components(table) if table.get(0xD, number).ecx & _XFD),
        "amx": _amx(table),
        "cpuid_forced": child.get("forced"),
        "msrs": [f"{index:#010x}" for index in listed],
        "msrs_unlisted": child.get("unlisted"),
        "feature_msrs": {
            f"{index:#010x}": {"name": msr_name(index), "value": f"{value:#x}"}
            for index, value in _feature_msrs(kvm).items()
        },
        "tsc": {"khz": child.get("tsc_khz"), "scaling": kvm.check_extension(_TSC_CONTROL) > 0},
    }


def lines(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (name, value) pairs for people, of what :func:`survey` added."""
    permission, tsc, amx = document["permission"], document["tsc"], document["amx"]
    found = []
    if permission and "features" in permission:
        area = f"XSAVE area {permission['xsave2']} bytes by KVM"
        found.append(("with guest permission", f"{' '.join(permission['features'])}, {area}"))
    elif permission:
        found.append(("with guest permission", permission["refused"]))
    if amx:
        limits = f"TMUL maxk {amx['tmul_maxk']} maxn {amx['tmul_maxn']}"
        found.append(("AMX", f"palettes up to {amx['max_palette']}, {limits}"))
    khz = "unknown" if tsc["khz"] is None else f"{tsc['khz']} kHz"
    return [
        *found,
        ("TSC of a guest", f"{khz}, {'scaled at will' if tsc['scaling'] else 'not scaled'}"),
        ("MSRs to save", f"{len(document['msrs'])}, feature MSRs {len(document['feature_msrs'])}"),
    ]


def _signature() -> dict[str, int]:
    eax = cpuid.host(1).eax
    family, model = eax >> 8 & 0xF, eax >> 4 & 0xF
    if family in (6, 15):
        model |= eax >> 12 & 0xF0
    return {"family": family + (eax >> 20 & 0xFF if family == 15 else 0), "model": model, "stepping": eax & 0xF}


def _capabilities(kvm: Kvm) -> dict[str, int]:
    return {name: kvm.check_extension(number) for name, number in CAPABILITIES.items()}


def _permission(child: dict[str, Any], table: Cpuid) -> dict[str, Any]:
    if "cpuid" not in child:
        return {"refused": child.get("refused", "the process that asked for it gave no answer")}
    entries = [str(entry) for entry in table if any(entry.registers)]
    return {"features": child["features"], "xsave2": child["xsave2"], "cpuid": entries}


def _components(table: Cpuid) -> list[int]:
    return list(bits(table.xcr0 | table.xss))


def _xfeatures(table: Cpuid) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for number in _components(table):
        leaf = table.get(0xD, number)
        size, offset = (leaf.eax, leaf.ebx) if number > xfeature.XFeature.SSE else _LEGACY[number]
        flags = {name: bool(leaf.ecx & bit) and number > 1 for name, bit in _FLAGS.items()}
        found[xfeature.name(number)] = {"number": number, "size": size, "offset": offset, **flags}
    return found


def _amx(table: Cpuid) -> dict[str, Any] | None:
    palettes = table.get(0x1D).eax
    if not palettes:
        return None
    tmul = TmulInfo(table.get(0x1E).ebx)
    return {
        "max_palette": palettes,
        "palettes": {
            number: {name: getattr(info, name) for name in TileInfo.fields}
            for number in range(1, min(palettes, _PALETTES) + 1)
            for info in [TileInfo.from_registers(table.get(0x1D, number).registers)]
        },
        "tmul_maxk": tmul.tmul_maxk,
        "tmul_maxn": tmul.tmul_maxn,
    }


def _feature_msrs(kvm: Kvm) -> dict[int, int]:
    """Return the value of each MSR that KVM_GET_MSR_FEATURE_INDEX_LIST names, read through /dev/kvm."""
    values = {index: msr.get_feature_msr(kvm, index) for index in msr.feature_index_list(kvm)}
    return {index: value for index, value in values.items() if value is not None}


def _measure_for_good(dynamic: int, listed: list[int]) -> dict[str, Any]:
    """In the child: what leaves a mark on the process, that is, permissions and then a vCPU."""
    found: dict[str, Any] = {}
    with Kvm() as kvm:
        if dynamic:
            found |= _ask(kvm, dynamic)
        table = cpuid.supported(kvm)
        with kvm.create_vm() as vm:
            vcpu = vm.create_vcpu()
            # The call on a VM is there since Linux 5.18 (KVM_CAP_VM_TSC_CONTROL), on a vCPU since 2.6.39.
            for handle in (vm, vcpu):
                with suppress(KvmError):
                    found.setdefault("tsc_khz", handle.ioctl_value(lib.KVM_GET_TSC_KHZ) or None)
            with suppress(KvmError):
                cpuid.set_cpuid(vcpu, table)
                found["unlisted"] = _unlisted(vcpu, listed)
        with kvm.create_vm() as vm, suppress(KvmError):
            found["forced"] = _forced(vm.create_vcpu(), table)
    return found


def _ask(kvm: Kvm, dynamic: int) -> dict[str, Any]:
    try:
        for number in bits(dynamic):
            permission.request_guest(number)
    except KvmError as error:
        return {"refused": str(error)}
    return {
        "features": [xfeature.name(number) for number in bits(dynamic)],
        "cpuid": cpuid.supported(kvm).packed.hex(),
        "xsave2": kvm.check_extension(lib.KVM_CAP_XSAVE2),
    }


def _unlisted(vcpu: Vcpu, listed: list[int]) -> list[str]:
    values = msr.get_readable(vcpu, sorted(KNOWN - set(listed)))
    return [f"{index:#010x}" for index, value in values.items() if msr.set_msr(vcpu, index, value)]


def _forced(vcpu: Vcpu, table: Cpuid) -> list[str]:
    cpuid.set_cpuid(vcpu, Cpuid(_cleared(entry) for entry in table))
    found = []
    for entry in cpuid.get_cpuid(vcpu):
        bits = {register: getattr(entry, register) & mask for register, mask in _feature_bits(entry).items()}
        if any(bits.values()):
            found.append(str(Entry(entry.function, entry.index, entry.flags, **bits)))
    return found


def _feature_bits(entry: Entry) -> dict[str, int]:
    """Return the bits of a leaf's registers that are features, for a guest to have or not."""
    masks = {}
    for register in REGISTERS:
        place = (entry.function, entry.index, register)
        if place in BITS:
            masks[register] = sum(1 << bit for bit in BITS[place]) & ~RUNTIME.get(place, 0)
        elif place == (0xD, 0, "eax"):
            masks[register] = _CHOSEN_XFEATURES
    return masks


def _cleared(entry: Entry) -> Entry:
    kept = {register: getattr(entry, register) & ~mask for register, mask in _feature_bits(entry).items()}
    return replace(entry, **kept)


def _in_child(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what ``measure`` returns in a forked child; nothing if the child does not answer in time."""
    receive, send = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.write(send, json.dumps(measure()).encode())  # less than a pipe holds
        finally:
            os._exit(0)
    os.close(send)
    try:
        data = _read(receive, time.monotonic() + _CHILD_SECONDS)
    finally:
        os.close(receive)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # it has answered, or it never will
        os.waitpid(pid, 0)
    try:
        answer = json.loads(data)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _read(fd: int, deadline: float) -> bytes:
    data = b""
    while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            break
        data += chunk
    return data
