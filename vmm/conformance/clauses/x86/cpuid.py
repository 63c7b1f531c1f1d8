# SPDX-License-Identifier: Apache-2.0
"""KVM_GET_SUPPORTED_CPUID: what the xstate leaves promise, and whether they agree with each other."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, subset, succeeds, true
from vmm.conformance.needs import Need
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import (
    GUEST_XSAVE,
    TILE_GUESTS,
    configured,
    guest_supported,
    offers,
    permit_tiles,
    stay_on_one_cpu,
)
from vmm.kvm.bits import bits
from vmm.probe.host import Host
from vmm.x86 import cpuid, xfeature
from vmm.x86.cpuid import Cpuid
from vmm.x86.msr import set_msr
from vmm.x86.msr_names import Msr
from vmm.x86.registers import set_xcr0
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import Layout

# The components that have a name here; a newer KVM may offer more.
_NAMED = xfeature.mask(*XFeature)
# The first leaf that is not a basic one.
_HYPERVISOR = 0x40000000


def _tables(context: Context) -> Iterator[tuple[str, Cpuid]]:
    """Yield what KVM supports without the guest permission for tiles and, where AMX guests are possible, with it."""
    yield "without tiles", cpuid.supported(context.kvm)
    may_ask = context.host.facts.xcomp_guest_permitted is not None
    if may_ask and guest_supported(context) & xfeature.XTILE == xfeature.XTILE:
        permit_tiles(context)
        yield "with tiles", cpuid.supported(context.kvm)


@clause("cpuid.0xd0-size", arch="x86", needs=(GUEST_XSAVE,))
def leaf_d0_size(context: Context) -> None:
    """CPUID 0xD.0 gives as EBX and ECX the size that its own subleaves add up to, and nothing KVM lacks.

    Source: arch/x86/kvm/cpuid.c, __do_cpuid_func (case 0xd), xstate_required_size.
    """
    for which, table in _tables(context):
        entry = table.get(0xD)
        size = Layout.from_cpuid(table).size(table.xcr0)
        equal(f"0xD.0 ECX {which}", entry.ecx, size)
        equal(f"0xD.0 EBX {which}", entry.ebx, size)
        subset(f"0xD.0 EDX:EAX {which} against what KVM supports", table.xcr0, guest_supported(context))


@clause("cpuid.0xd1-size", arch="x86", needs=(GUEST_XSAVE,))
def leaf_d1_size(context: Context) -> None:
    """CPUID 0xD.1 EBX is the compacted size of XCR0 and IA32_XSS where there is XSAVEC or XSAVES, else 0.

    Source: arch/x86/kvm/cpuid.c, __do_cpuid_func (case 0xd); before 5.17 alignment was ignored.
    """
    for which, table in _tables(context):
        compacts = table.has("XSAVEC") or table.has("XSAVES")
        size = Layout.from_cpuid(table).compacted_size(table.xcr0 | table.xss) if compacts else 0
        equal(f"0xD.1 EBX {which}", table.get(0xD, 1).ebx, size)
        supervisor = xfeature.mask(*(n for n in bits(table.xss) if cpuid.host(0xD, n).ecx & 1))
        subset(f"0xD.1 EDX:ECX {which} against the CPU's supervisor components", table.xss, supervisor)


@clause("cpuid.0xd-subleaf-kind", arch="x86", needs=(GUEST_XSAVE,))
def leaf_d_subleaf_kind(context: Context) -> None:
    """Each advertised component has the subleaf that the CPU has, of the right kind, and no other component has one.

    Source: arch/x86/kvm/cpuid.c, __do_cpuid_func (case 0xd).
    """
    for which, table in _tables(context):
        advertised = (table.xcr0 | table.xss) & ~3
        for number in bits(advertised):
            name = f"{xfeature.name(number)} {which}"
            entry = table.get(0xD, number)
            real = cpuid.host(0xD, number)
            equal(f"size and offset of {name}", (entry.eax, entry.ebx), (real.eax, real.ebx))
            true(f"size of {name}", entry.eax > 0, entry.eax, "more than 0")
            supervisor = table.xss >> number & 1
            equal(f"supervisor bit of {name}", entry.ecx & 1, supervisor)
            true(
                f"offset of {name}",
                (entry.ebx == 0) == bool(supervisor),
                entry.ebx,
                "0 for supervisor components only",
            )
            equal(f"EDX of {name}", entry.edx, 0)
        present = (e.index for e in table if e.function == 0xD and e.index >= 2 and any(e.registers))
        equal(f"components with a subleaf {which}", xfeature.mask(*present), advertised)


@clause("cpuid.0xd-xfd-bit", arch="x86", needs=(GUEST_XSAVE,))
def leaf_d_xfd_bit(context: Context) -> None:
    """The components marked as subject to XFD are those that the CPU marks, and none if KVM does not offer XFD.

    Source: arch/x86/kvm/cpuid.c, __do_cpuid_func (case 0xd: ECX[2] is cleared without X86_FEATURE_XFD).
    """
    for which, table in _tables(context):
        marked = xfeature.mask(*(e.index for e in table if e.function == 0xD and e.index >= 2 and e.ecx & 4))
        offered = (table.xcr0 | table.xss) & ~3 if table.has("XFD") else 0
        by_cpu = xfeature.mask(*(n for n in bits(offered) if cpuid.host(0xD, n).ecx & 4))
        equal(f"components with XFD {which}", marked, by_cpu)


@clause("cpuid.0x1d", arch="x86")
def leaf_1d(context: Context) -> None:
    """CPUID 0x1D describes the tile palettes as the CPU does if KVM offers AMX_TILE, and is all zero if not.

    Source: arch/x86/kvm/cpuid.c, __do_cpuid_func (case 0x1d).
    """
    table = cpuid.supported(context.kvm)
    if not table.has("AMX_TILE"):
        found = [str(e) for e in table if e.function == 0x1D and any(e.registers)]
        equal("non-zero entries of leaf 0x1D without AMX_TILE", found, [])
        return
    last = table.get(0x1D).eax
    true("0x1D.0 EAX (the last palette)", 1 <= last <= cpuid.host(0x1D).eax, last, "1 to the CPU's")
    for palette in range(1, last + 1):
        seen, own = table.get(0x1D, palette), cpuid.host(0x1D, palette)
        equal(f"0x1D.{palette} against the CPU", seen.registers, own.registers)


@clause("cpuid.0x24-avx10", arch="x86")
def leaf_24(context: Context) -> None:
    """CPUID 0x24 gives an AVX10 version and features that the CPU has if KVM offers AVX10, and is all zero if not.

    Source: arch/x86/kvm/cpuid.c, __do_cpuid_func (case 0x24); 6.12 knows version 1, 7.2 version 2.
    """
    table = cpuid.supported(context.kvm)
    if not table.has("AVX10"):
        found = [str(e) for e in table if e.function == 0x24 and any(e.registers)]
        equal("non-zero entries of leaf 0x24 without AVX10", found, [])
        return
    entry, own = table.get(0x24), cpuid.host(0x24)
    version = entry.ebx & 0xFF
    true("AVX10 version", 1 <= version <= own.ebx & 0xFF, version, "1 to the CPU's")
    true("last subleaf of 0x24", entry.eax <= own.eax, entry.eax, "at most the CPU's")
    subset("0x24.0 EBX[31:8] against the CPU", entry.ebx >> 8, own.ebx >> 8)
    _within_cpu("0x24.0", (entry.ecx, entry.edx), (own.ecx, own.edx))
    for index in range(1, own.eax + 1):
        _within_cpu(f"0x24.{index}", table.get(0x24, index).registers, cpuid.host(0x24, index).registers)


def _within_cpu(leaf: str, seen: tuple[int, ...], own: tuple[int, ...]) -> None:
    """Registers of a leaf of features may have no bit that the CPU's do not have."""
    for value, limit in zip(seen, own, strict=True):
        subset(f"{leaf} against the CPU", value, limit)


@clause("cpuid.not-exposed", arch="x86", needs=(GUEST_XSAVE,))
def not_exposed(context: Context) -> None:
    """KVM offers guests no xfeature beyond those it can give them: XCR0 and IA32_XSS take all that CPUID 0xD offers.

    So no PT, PASID, UINTR, LBR or APX state where KVM cannot save it. What has no name here, as in a KVM newer than
    this was read from, is noted.

    Source: arch/x86/kvm/x86.c, KVM_SUPPORTED_XCR0 and KVM_SUPPORTED_XSS, __kvm_set_xcr, kvm_set_msr_common.
    """
    table = cpuid.supported(context.kvm)
    vcpu = configured(context, table)
    # Tile components come in a pair or not at all: cpuid.all-or-none looks at that.
    succeeds("XCR0 of all that 0xD.0 offers", set_xcr0, vcpu, table.xcr0 & ~xfeature.XTILE)
    if table.xss:
        equal(f"IA32_XSS = {table.xss:#x} accepted", set_msr(vcpu, Msr.XSS, table.xss), True)
    equal("APX_F against its component in 0xD.0", table.has("APX_F"), bool(table.xcr0 >> XFeature.APX & 1))
    unnamed = (table.xcr0 | table.xss) & ~_NAMED
    if unnamed:
        context.note(f"offered, and without a name here: {xfeature.describe(unnamed)}")


@clause("cpuid.all-or-none", arch="x86", needs=(GUEST_XSAVE,))
def all_or_none(context: Context) -> None:
    """The components of MPX, AVX-512 and AMX are offered together or not at all, each with what it builds on.

    Source: arch/x86/kvm/x86.c, __kvm_set_xcr (which refuses anything else); Intel SDM volume 1, 13.3.
    """
    chain = ((XFeature.YMM, XFeature.SSE), (XFeature.OPMASK, XFeature.YMM), (XFeature.SSE, XFeature.FP))
    for which, table in _tables(context):
        xcr0 = table.xcr0
        for name, group in (("MPX", xfeature.MPX), ("AVX-512", xfeature.AVX512), ("XTILE", xfeature.XTILE)):
            true(f"{name} in 0xD.0 {which}", xcr0 & group in (0, group), xcr0 & group, f"0 or {group:#x}")
        for upper, lower in chain:
            if xcr0 >> upper & 1:
                equal(f"{lower.name} {which}, which {upper.name} needs", xcr0 >> lower & 1, 1)


def _two_dimensional_paging(host: Host) -> str:
    """What the module that answers was told of EPT or NPT; "unknown" where the host does not show it."""
    parameter = {"kvm_intel": "kvm_intel.ept", "kvm_amd": "kvm_amd.npt"}.get(host.backend, "")
    return str(host.facts.parameters.get(parameter, "unknown"))


@clause("cpuid.pku-needs-tdp", arch="x86", needs=(offers("PKU"),))
def pku_needs_tdp(context: Context) -> None:
    """PKU is offered only where the host uses protection keys itself and guests are paged by EPT or NPT.

    Source: arch/x86/kvm/cpuid.c, kvm_initialize_cpu_caps (the comment on X86_FEATURE_PKU).
    """
    equal("OSPKE of the host", cpuid.host(7).ecx >> 4 & 1, 1)
    paging = _two_dimensional_paging(context.host)
    if paging == "unknown":
        context.note("this host does not show whether guests are paged by EPT or NPT")
    else:
        true("two-dimensional paging", paging in ("Y", "1"), paging, "Y")


@clause("cpuid.cet-all-or-nothing", arch="x86")
def cet_all_or_nothing(context: Context) -> None:
    """Shadow stacks or IBT are offered only with XSAVES and both CET components in IA32_XSS, which come in pairs.

    Source: arch/x86/kvm/x86.c, kvm_setup_xss_caps; arch/x86/kvm/cpuid.c (6.18 and later; none before).
    """
    table = cpuid.supported(context.kvm)
    components = table.xss >> 11 & 3
    true("CET_U and CET_S in 0xD.1", components in (0, 3), components, "both or neither")
    if table.has("SHSTK") or table.has("IBT"):
        equal("CET components with SHSTK or IBT", components, 3)
        equal("XSAVES with SHSTK or IBT", table.has("XSAVES"), True)


def _ask(kvm: Any, nent: int) -> int:
    buffer = ffi.new("struct kvm_cpuid2 *", {"nent": nent, "entries": nent})
    kvm.ioctl(lib.KVM_GET_SUPPORTED_CPUID, buffer)
    return int(buffer.nent)


@clause("cpuid.nent-protocol", arch="x86")
def nent_protocol(context: Context) -> None:
    """A table that is too small fails with E2BIG and nent unchanged; more room than 256 entries is not an error.

    The documentation promises ENOMEM for more than the kernel's limit; the code takes the limit instead.

    Source: arch/x86/kvm/cpuid.c, kvm_dev_ioctl_get_cpuid; Documentation/virt/kvm/api.rst 4.46.
    """
    stay_on_one_cpu()
    kvm = context.kvm
    count = succeeds("256 entries", _ask, kvm, 256)
    true("entries", 0 < count <= 256, count, "1 to 256")
    equal("entries in a table of exactly that size", succeeds("the exact size", _ask, kvm, count), count)
    equal("entries in a table of 300", succeeds("300 entries", _ask, kvm, 300), count)
    for nent in (0, 1, count - 1):
        buffer = ffi.new("struct kvm_cpuid2 *", {"nent": nent, "entries": nent})
        refused(f"{nent} entries", errno.E2BIG, kvm.ioctl, lib.KVM_GET_SUPPORTED_CPUID, buffer)
        equal(f"nent after asking with {nent}", buffer.nent, nent)


@clause("cpuid.leaf0-max", arch="x86")
def leaf0_max(context: Context) -> None:
    """The highest basic leaf covers the xstate leaf and all that is listed; it and leaf 7 do not exceed the CPU's.

    Source: arch/x86/kvm/cpuid.c, __do_cpuid_func (cases 0 and 7), get_cpuid_func.
    """
    table = cpuid.supported(context.kvm)
    top, last = table.get(0).eax, table.get(7).eax
    own = cpuid.host(0).eax
    true("0.EAX", min(0xD, own) <= top <= own, top, f"{min(0xD, own):#x} to the CPU's {own:#x}")
    listed = [entry.function for entry in table if top < entry.function < _HYPERVISOR]
    equal("basic leaves beyond the highest", listed, [])
    if top >= 7:
        true("7.0.EAX", last <= cpuid.host(7).eax, last, "at most the CPU's")
        subleaves = [entry.index for entry in table if entry.function == 7 and entry.index > last]
        equal("subleaves of 7 beyond the last", subleaves, [])


@clause("cpuid.hidden-without-perm", arch="x86", needs=TILE_GUESTS)
def hidden_without_permission(context: Context) -> None:
    """Without guest permission CPUID 0xD leaves out both tile components and their subleaves; with it all are there.

    From 5.17 to 6.3 TILECFG was listed without TILEDATA, and guests that enabled all they saw took #GP.

    Source: arch/x86/kvm/x86.h, kvm_get_filtered_xcr0; arch/x86/kvm/cpuid.c, __do_cpuid_func (case 0xd); Linux 6.4.
    """
    before = cpuid.supported(context.kvm)
    equal("tile components without permission", before.xcr0 & xfeature.XTILE, 0)
    listed = [n for n in (17, 18) if (entry := before.find(0xD, n)) and any(entry.registers)]
    equal("tile subleaves without permission", listed, [])
    permit_tiles(context)
    after = cpuid.supported(context.kvm)
    equal("tile components with permission", after.xcr0 & xfeature.XTILE, xfeature.XTILE)
    for number in (17, 18):
        seen = after.get(0xD, number)
        equal(f"subleaf {number} with permission", seen.registers, cpuid.host(0xD, number).registers)


@clause("cpuid.amx-isa-bits-not-hidden", arch="x86", needs=TILE_GUESTS, info=True)
def instruction_bits_stay(context: Context) -> None:
    """Whether only leaf 0xD depends on the permission, and AMX_TILE, XFD and leaves 0x1D and 0x1E do not.

    The documentation says that feature bits which were not requested are left out, the code has them. A VMM that
    hands KVM's table through shows a guest AMX_TILE without the components in XCR0.

    Source: arch/x86/kvm/cpuid.c, kvm_initialize_cpu_caps; Documentation/virt/kvm/api.rst 4.46.
    """
    stay_on_one_cpu()
    before = cpuid.supported(context.kvm)
    for feature in ("AMX_TILE", "XFD"):
        equal(f"{feature} without permission", before.has(feature), True)
    permit_tiles(context)
    after = cpuid.supported(context.kvm)
    changed = {line.split(".")[0] for line in before.compare(after)}
    equal("leaves that the permission changes", changed, {"0000000d"})


@clause("cpuid.0x1e", arch="x86", needs=TILE_GUESTS)
def leaf_1e(context: Context) -> None:
    """CPUID 0x1E.0 gives the CPU's own limits of the tile multiplier, and subleaf 1 no feature that the CPU lacks.

    Source: arch/x86/kvm/cpuid.c, __do_cpuid_func (case 0x1e); 6.12 passes EAX through and has no subleaf 1.
    """
    table = cpuid.supported(context.kvm)
    entry, own = table.get(0x1E), cpuid.host(0x1E)
    equal("0x1E.0 EBX (maxk, maxn)", entry.ebx, own.ebx)
    subset("0x1E.0 ECX against the CPU", entry.ecx, own.ecx)
    subset("0x1E.0 EDX against the CPU", entry.edx, own.edx)
    true("0x1E.0 EAX", entry.eax <= own.eax, entry.eax, "at most the CPU's")
    features = table.get(0x1E, 1).registers
    of_cpu = cpuid.host(0x1E, 1).registers if own.eax else (0, 0, 0, 0)
    for register, seen, limit in zip(cpuid.REGISTERS, features, of_cpu, strict=True):
        subset(f"0x1E.1 {register.upper()} against the CPU", seen, limit)


def _has_aliases(host: Host) -> tuple[bool, str]:
    listed = any((entry.function, entry.index) == (0x1E, 1) for entry in host.facts.cpuid)
    return listed, f"KVM_GET_SUPPORTED_CPUID has {'an' if listed else 'no'} entry for 0x1E.1"


_ALIASES = Need("CPUID 0x1E.1", _has_aliases)


@clause("cpuid.0x1e-alias-consistent", arch="x86", needs=(*TILE_GUESTS, _ALIASES))
def leaf_1e_aliases(context: Context) -> None:
    """The features of 0x1E.1 that leaf 7 has too agree with leaf 7.

    Source: arch/x86/kvm/cpuid.c, kvm_initialize_cpu_caps (CPUID_1E_1_EAX aliases); Linux 6.19.
    """
    table = cpuid.supported(context.kvm)
    aliases = table.get(0x1E, 1).eax
    for bit, feature in enumerate(("AMX_INT8", "AMX_BF16", "AMX_COMPLEX", "AMX_FP16")):
        equal(f"0x1E.1 EAX[{bit}] against {feature}", aliases >> bit & 1, int(table.has(feature)))
