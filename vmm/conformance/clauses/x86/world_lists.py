# SPDX-License-Identifier: Apache-2.0
"""The lists by which KVM says what it has: their room, their counts, each item once, and what they have to name."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from vmm._kvm import lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.conformance.x86.listing import Listing, judge
from vmm.conformance.x86.world import GROUND
from vmm.x86 import msr
from vmm.x86.cpuid import MAX_ENTRIES, Cpuid, get_cpuid, supported
from vmm.x86.msr_names import Msr

_MSRS = Listing("KVM_GET_MSR_INDEX_LIST", lib.KVM_GET_MSR_INDEX_LIST, "kvm_msr_list", "nmsrs", "indices", tells=True)
_FEATURE_MSRS = Listing(
    "KVM_GET_MSR_FEATURE_INDEX_LIST",
    lib.KVM_GET_MSR_FEATURE_INDEX_LIST,
    "kvm_msr_list",
    "nmsrs",
    "indices",
    tells=True,
)
_REGISTERS = Listing("KVM_GET_REG_LIST", lib.KVM_GET_REG_LIST, "kvm_reg_list", "n", "reg", tells=True)


def _cpuid(name: str, request: int, *, adjusts: bool = True, clean: bool = False, over: int = 0) -> Listing:
    return Listing(
        name, request, "kvm_cpuid2", "nent", "entries", tells=False, adjusts=adjusts, clean=clean, over=over
    )


_SUPPORTED = _cpuid("KVM_GET_SUPPORTED_CPUID", lib.KVM_GET_SUPPORTED_CPUID)
# arch/x86/kvm/cpuid.c, sanity_check_entries; __do_cpuid_func_emulated asks for room before it knows that it needs it.
_EMULATED = _cpuid("KVM_GET_EMULATED_CPUID", lib.KVM_GET_EMULATED_CPUID, clean=True, over=1)
# Linux 6.1 leaves nent as it was given.
_CHOSEN = _cpuid("KVM_GET_CPUID2", lib.KVM_GET_CPUID2, adjusts=False)
# Feature MSRs that every KVM has; VMX's, from VMX_BASIC to VMX_VMFUNC, go with nested VMX.
_ALWAYS = (Msr.UCODE_REV, Msr.ARCH_CAPABILITIES, 0x345)
_VMX = range(0x480, 0x492)


def _once(what: str, items: Sequence[bytes], names: Iterable[str]) -> None:
    twice = sorted({name for name, item in zip(names, items, strict=True) if items.count(item) > 1})
    equal(f"what {what} lists twice", twice, [])


def _numbers(items: Sequence[bytes]) -> list[int]:
    return [int.from_bytes(item, "little") for item in items]


@clause("world.msrs-list", arch="x86")
def msrs_list(context: Context) -> None:
    """KVM_GET_MSR_INDEX_LIST takes exactly the room that it needs and less with E2BIG, and tells how many there are.

    Source: Documentation/virt/kvm/api.rst, 4.3; arch/x86/kvm/x86.c, kvm_arch_dev_ioctl.
    """
    items = judge(_MSRS, context.kvm)
    _once(_MSRS.name, items, map(msr.name, _numbers(items)))


@clause("world.feature-msrs-list", arch="x86")
def feature_msrs_list(context: Context) -> None:
    """KVM_GET_MSR_FEATURE_INDEX_LIST likewise; it names those that every KVM has, and /dev/kvm gives all of them.

    Source: Documentation/virt/kvm/api.rst, 4.3, 4.18; arch/x86/kvm/x86.c, kvm_init_msr_lists, kvm_get_feature_msr;
    vmx/vmx.c, vmx_get_feature_msr.
    """
    items = judge(_FEATURE_MSRS, context.kvm)
    listed = _numbers(items)
    _once(_FEATURE_MSRS.name, items, map(msr.name, listed))
    wanted = [*_ALWAYS, *(_VMX if context.host.facts.cpuid.has("VMX") else ())]
    equal("feature MSRs that are missing", [msr.name(index) for index in wanted if index not in listed], [])
    single = {index: msr.get_feature_msr(context.kvm, index) for index in listed}
    refused = [msr.name(index) for index, value in single.items() if value is None]
    equal("listed ones that /dev/kvm does not give", refused, [])
    equal("their values, asked for at once", msr.get_feature_msrs(context.kvm, listed), list(single.values()))


def _judge_cpuid(listing: Listing, items: Sequence[bytes]) -> None:
    table = Cpuid.unpack(b"".join(items))
    places = [struct.pack("<II", entry.function, entry.index) for entry in table]
    _once(listing.name, places, (f"{entry.function:#x}.{entry.index}" for entry in table))
    stray = [str(entry) for entry, item in zip(table, items, strict=True) if any(item[28:])]
    equal(f"entries of {listing.name} whose padding is not 0", stray, [])


@clause("world.cpuid-list", arch="x86")
def supported_list(context: Context) -> None:
    """KVM_GET_SUPPORTED_CPUID takes the room that it needs, less is E2BIG; each leaf and subleaf is there once.

    Source: Documentation/virt/kvm/api.rst, 4.46; arch/x86/kvm/cpuid.c, kvm_dev_ioctl_get_cpuid.
    """
    _judge_cpuid(_SUPPORTED, judge(_SUPPORTED, context.kvm, len(supported(context.kvm)), most=MAX_ENTRIES))


@clause("world.emulated-cpuid-list", arch="x86")
def emulated_list(context: Context) -> None:
    """KVM_GET_EMULATED_CPUID likewise.

    Source: Documentation/virt/kvm/api.rst, KVM_GET_EMULATED_CPUID; arch/x86/kvm/cpuid.c, __do_cpuid_func_emulated.
    """
    if not context.kvm.check_extension(lib.KVM_CAP_EXT_EMUL_CPUID):
        context.skip("needs KVM_CAP_EXT_EMUL_CPUID: it is 0")
    _judge_cpuid(_EMULATED, judge(_EMULATED, context.kvm, most=MAX_ENTRIES))


@clause("world.vcpu-cpuid-list", arch="x86")
def chosen_list(context: Context) -> None:
    """KVM_GET_CPUID2 takes exactly the room that the vCPU's table needs, less with E2BIG.

    Source: Documentation/virt/kvm/api.rst, KVM_GET_CPUID2; arch/x86/kvm/cpuid.c, kvm_vcpu_ioctl_get_cpuid2.
    """
    vcpu = GROUND.vcpu(context)
    items = judge(_CHOSEN, vcpu, len(supported(context.kvm)))
    _judge_cpuid(_CHOSEN, items)
    equal("the table by KVM_GET_CPUID2 with room for more", get_cpuid(vcpu).packed, b"".join(items))


@clause("world.one-regs-list", arch="x86", needs=(capability("KVM_CAP_ONE_REG"),))
def registers_list(context: Context) -> None:
    """KVM_GET_REG_LIST takes exactly the room that it needs, less with E2BIG, and gives only what can be read.

    Source: Documentation/virt/kvm/api.rst, KVM_GET_REG_LIST; arch/x86/kvm/x86.c, kvm_get_reg_list; Linux 6.18.
    """
    vcpu = GROUND.vcpu(context)
    items = judge(_REGISTERS, vcpu)
    _once(_REGISTERS.name, items, (f"{number:#x}" for number in _numbers(items)))
    for identifier in _numbers(items):
        equal(f"the bytes of register {identifier:#x}", len(vcpu.get_one_reg(identifier)), 8)
