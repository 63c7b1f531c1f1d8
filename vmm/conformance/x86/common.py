# SPDX-License-Identifier: Apache-2.0
"""What the x86 clauses share: preconditions, ready-made vCPUs, areas full of recognisable data."""

from __future__ import annotations

import os
import random

from vmm.conformance.context import Context
from vmm.conformance.expect import judged
from vmm.conformance.needs import Need, capability
from vmm.conformance.x86.noise import noise
from vmm.kvm.bits import bits
from vmm.kvm.vcpu import Vcpu
from vmm.probe.host import Host
from vmm.probe.x86.facts import CALLS
from vmm.x86 import cpuid, permission, xfeature
from vmm.x86.boot import CR4_OSXSAVE
from vmm.x86.cpuid import Cpuid
from vmm.x86.guest import Guest
from vmm.x86.registers import set_xcr0
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import LEGACY_SIZE, XsaveArea, host_layout

__all__ = [
    "AREA",
    "AVX",
    "AVX512",
    "GUEST_AMX",
    "GUEST_PKRU",
    "GUEST_XSAVE",
    "HOST_XFD",
    "HOST_XSAVE",
    "MASKABLE",
    "NO_HOST_XFD",
    "PLAIN",
    "STRICT_MSRS",
    "SYSTEM_ATTRIBUTES",
    "TILEDATA",
    "TILE_GUESTS",
    "XCOMP",
    "XCOMP_GUEST",
    "XSAVE2",
    "configured",
    "guest_supported",
    "judged_call",
    "maskable",
    "offers",
    "pattern",
    "permit_tiles",
    "permitted_size",
    "plain_features",
    "static_features",
    "stay_on_one_cpu",
    "tile_table",
    "untiled_features",
    "vector_guest",
    "vector_level",
]

# Components whose bytes mean nothing to the CPU, so that any pattern may stand in them.
PLAIN = xfeature.mask(XFeature.FP, XFeature.SSE, XFeature.YMM) | xfeature.AVX512
TILEDATA = int(XFeature.XTILEDATA)
# x87 control and status words unlike the initial ones: rounding to 0 with 24 bits; TOP 5 and C0, no exception.
_FCW, _FSW = 0x0C7F, 0x2900


def _bits(name: str, value_of: str, wanted: int, *, absent: bool = False) -> Need:
    def measure(host: Host) -> tuple[bool, str]:
        value = getattr(host.facts, value_of)
        met = value is not None and value & wanted == (0 if absent else wanted)
        return met, host.facts.answer(value_of)

    return Need(name, measure)


def _known(value_of: str) -> Need:
    def measure(host: Host) -> tuple[bool, str]:
        return getattr(host.facts, value_of) is not None, host.facts.answer(value_of)

    return Need(CALLS[value_of], measure)


def _guest_xcr0(name: str, wanted: int) -> Need:
    def measure(host: Host) -> tuple[bool, str]:
        value = host.facts.cpuid.xcr0
        return value & wanted == wanted, f"KVM offers XCR0 {xfeature.describe(value)}"

    return Need(name, measure)


def offers(feature: str) -> Need:
    """KVM offers guests a CPUID feature, by its name in cpuid_names."""

    def measure(host: Host) -> tuple[bool, str]:
        has = host.facts.cpuid.has(feature)
        return has, f"KVM_GET_SUPPORTED_CPUID has {feature} {'set' if has else 'clear'}"

    return Need(f"{feature} for guests", measure)


def _host_xsave(host: Host) -> tuple[bool, str]:
    value = host.facts.xcr0
    return value != 0, f"the host's XCR0 is {xfeature.describe(value)}" if value else "the host's CR4.OSXSAVE is 0"


def _refuses_unknown_msrs(host: Host) -> tuple[bool, str]:
    told = host.facts.parameters.get("kvm.ignore_msrs", "not shown")
    takes = "takes" if host.facts.ignore_msrs else "refuses"
    return not host.facts.ignore_msrs, f"KVM {takes} an MSR that does not exist (kvm.ignore_msrs is {told})"


# What this process may ask about its permissions, and what the kernel it runs on answers.
XCOMP = _known("xcomp_supported")
XCOMP_GUEST = _known("xcomp_guest_permitted")
SYSTEM_ATTRIBUTES = _known("guest_supported")
# What the host's kernel and CPU have. KVM_CAP_XSAVE is 1 without XSAVE too.
HOST_XSAVE = Need("a host with XSAVE", _host_xsave)
HOST_XFD = _bits("a host kernel with XFD and AMX", "xcomp_supported", xfeature.XTILE)
NO_HOST_XFD = _bits("a host without AMX", "xcomp_supported", 1 << TILEDATA, absent=True)
# What KVM supports for guests: it need not be all that the host has.
GUEST_AMX = _bits("a KVM that supports AMX guests", "guest_supported", xfeature.XTILE)
GUEST_XSAVE = _guest_xcr0("XSAVE for guests", xfeature.mask(XFeature.FP, XFeature.SSE))
AVX = _guest_xcr0("AVX for guests", xfeature.mask(XFeature.FP, XFeature.SSE, XFeature.YMM))
AVX512 = _guest_xcr0("AVX-512 for guests", xfeature.AVX512)
GUEST_PKRU = _guest_xcr0("PKRU for guests", xfeature.mask(XFeature.PKRU))
# Something that can be left out of a guest's XCR0: AVX at least.
MASKABLE = AVX
# KVM_GET_XSAVE2, with which every area here is read. Kernels from before it had KVM's own code for areas.
XSAVE2 = capability("KVM_CAP_XSAVE2")
# For who reads an area, and for who gives a guest tiles: KVM and the process's right to ask are two facts.
AREA = (HOST_XSAVE, XSAVE2)
TILE_GUESTS = (GUEST_AMX, XCOMP_GUEST, XSAVE2)
# What KVM's modules were told.
STRICT_MSRS = Need("a KVM that refuses unknown MSRs", _refuses_unknown_msrs)


def guest_supported(context: Context) -> int:
    """The xfeatures KVM can give a guest: KVM_X86_XCOMP_GUEST_SUPP, or leaf 0xD before that existed."""
    known = context.host.facts.guest_supported
    return int(context.host.facts.cpuid.xcr0 if known is None else known)


def maskable(context: Context) -> tuple[int, int]:
    """Return (all plain features KVM offers, the same without its most recent group)."""
    full = plain_features(context)
    return full, full & ~(xfeature.AVX512 if full & xfeature.AVX512 else 1 << XFeature.YMM)


def static_features(context: Context) -> int:
    """The xfeatures that need no permission: the guest permission of a process that requested none."""
    permitted = context.host.facts.xcomp_guest_permitted
    return int(context.host.facts.xcr0 & ~xfeature.DYNAMIC if permitted is None else permitted)


def permitted_size(features: int = -1) -> int:
    """Bytes of the area of a vCPU that has all that this process may give guests now, within ``features``.

    The host's CPU may have components that its kernel does not use, so CPUID 0xD.0 ECX is not the answer.
    Source: arch/x86/kernel/fpu/xstate.c, __xstate_request_perm (__user_state_size).
    """
    return max(LEGACY_SIZE, host_layout().size(permission.guest_permitted() & features))


def stay_on_one_cpu() -> None:
    """Keep this process on one CPU, for example because CPUID leaves differ between CPUs (APIC ids, caches)."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def untiled_features(context: Context) -> int:
    """All of XCR0 that KVM offers but tiles, which need a permission and which a kernel before 6.4 offers by half."""
    return int(context.host.facts.cpuid.xcr0) & ~xfeature.XTILE


def plain_features(context: Context) -> int:
    """The plain components that KVM offers to guests."""
    return int(context.host.facts.cpuid.xcr0) & PLAIN


def configured(context: Context, table: Cpuid | None = None) -> Vcpu:
    """A new vCPU with CPUID set, by default all that KVM supports."""
    vcpu = context.vcpu()
    cpuid.set_cpuid(vcpu, context.host.facts.cpuid if table is None else table)
    return vcpu


def pattern(features: int, seed: int, size: int = 4096) -> XsaveArea:
    """An area whose ``features`` hold data unlike their initial values, byte by byte.

    x87 data is such that every CPU gives it back unchanged: no exceptions pending and so no FOP, FIP and FDP, all
    registers valid, 80 bits.
    """
    source = random.Random(seed)
    area = XsaveArea.initial(size)
    for number in bits(features):
        if number == XFeature.FP:
            area.set_component(0, _x87(source))
        elif number == XFeature.SSE:
            area.set_component(1, (0x1FA0).to_bytes(4, "little") + bytes(4) + source.randbytes(256))
        else:
            area.set_component(number, noise(source, area.layout[number].size))
    return area


def _x87(source: random.Random) -> bytes:
    head = _FCW.to_bytes(2, "little") + _FSW.to_bytes(2, "little") + b"\xff" + bytes(19)
    return head + b"".join(source.randbytes(10) + bytes(6) for _ in range(8))


def permit_tiles(context: Context) -> None:
    """Request the guest permission for tile data; the clause's process must have no vCPU yet."""
    permission.request_guest(TILEDATA)


def tile_table(context: Context) -> Cpuid:
    """What KVM supports now, with both tile components in leaf 0xD whether or not KVM lists them."""
    table = cpuid.supported(context.kvm)
    return table.with_xcr0(table.xcr0 | xfeature.XTILE)


def vector_level(context: Context) -> str:
    """Return which entries of the xstate payload this KVM's guests can run: sse, avx or avx512."""
    table = context.host.facts.cpuid
    if table.xcr0 & xfeature.AVX512 == xfeature.AVX512 and _has_avx512bw(table):
        return "avx512"
    return "avx" if table.xcr0 & 1 << XFeature.YMM else "sse"


def _has_avx512bw(table: Cpuid) -> bool:
    # Where KVM runs the guest's CPL3 natively, its CPUID may leave out what works; ask the CPU too.
    return table.has("AVX512BW") or bool(cpuid.host(7).ebx >> 30 & 1)


def judged_call(
    context: Context, guest: Guest, entry: str, *parameters: int, privilege: int = 0, patience: int = 1
) -> int:
    """Run an entry point that the clause is about: it has to come to its end. ``patience`` multiplies the time limit.

    What an entry point counts as a fault is left to the caller; any other one, or a way out that is none, is judged.
    """
    with judged(f"{entry} in the guest"):
        return guest.call(entry, *parameters, privilege=privilege, timeout=patience * context.timeout)


def vector_guest(context: Context, features: int | None = None, table: Cpuid | None = None) -> Guest:
    """A guest with the xstate payload, CR4.OSXSAVE set and XCR0 = ``features`` (all plain ones KVM offers)."""
    guest = context.own(Guest(context.kvm, "xstate", cpuid=table or context.host.facts.cpuid, cr4=CR4_OSXSAVE))
    set_xcr0(guest.vcpu, plain_features(context) if features is None else features)
    return guest
