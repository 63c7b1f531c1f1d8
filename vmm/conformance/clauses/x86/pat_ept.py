# SPDX-License-Identifier: Apache-2.0
"""The memory types that KVM puts into EPT, read from its page tables and not from how fast memory is."""

from __future__ import annotations

import mmap
import os

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import Skipped, equal, judged, succeeds
from vmm.conformance.registry import clause
from vmm.conformance.x86.caching import PAT_IGNORED, PAT_QUIRK
from vmm.conformance.x86.ept import EPT, TRACEFS, SpteTrace
from vmm.kvm.memory import PAGE_SIZE, GuestMemory
from vmm.x86 import msr
from vmm.x86.guest import Guest
from vmm.x86.memory_types import MemoryType, Quirk
from vmm.x86.msr_names import Msr
from vmm.x86.registers import get_sregs, set_sregs

_NEEDS = (EPT, TRACEFS)
# A slot for nothing but what is looked at, where the guest's tables map all of 4 GiB.
_GPA, _PAGES = 16 << 20, 12
_SLOT_OF_DEVICE, _DEVICE_GPA = 9, 32 << 20
_CR0_CD = 1 << 30
_FIRST_RANGE, _VALID_RANGE, _ENABLED = 0x200, 1 << 11, 1 << 11
# What an EPT entry says: its memory type, and whether it ignores the guest's PAT.
_FORCED_WB, _WB, _UC = (MemoryType.WB, True), (MemoryType.WB, False), (MemoryType.UC, False)


def _trace(context: Context) -> SpteTrace:
    try:
        return context.own(SpteTrace())
    except OSError as error:
        raise Skipped(f"an instance of tracefs cannot be made here: {error.strerror}") from error


class _Mapped:
    """A guest, and how KVM maps the pages that it touches."""

    def __init__(self, context: Context, trace: SpteTrace | None = None) -> None:
        self._trace = trace or _trace(context)
        self._context = context
        self.guest = context.own(Guest(context.kvm, "dirty", cpuid=context.host.facts.cpuid))
        self.memory: GuestMemory = self.guest.vm.add_memory(_PAGES * PAGE_SIZE, _GPA)

    def touch(self, entry: str, gpa: int, count: int, cr0: int = 0) -> list[tuple[MemoryType, bool]]:
        """Have the guest read or write pages from ``gpa`` on; return how those were mapped that KVM mapped for it."""
        self._trace.start()
        self.guest.prepare(entry, gpa, count, 1, 1, 0, 64, privilege=self.guest.USER)
        if cr0:
            sregs = get_sregs(self.guest.vcpu)
            sregs.cr0 |= cr0
            set_sregs(self.guest.vcpu, sregs)
        with judged(f"{entry} in the guest"):
            self.guest.finish(self.guest.resume(self._context.timeout))
        pages = range(gpa // PAGE_SIZE, gpa // PAGE_SIZE + count)
        return [(one.memory_type, one.ignores_pat) for one in self._trace.mappings() if one.gfn in pages]

    def expect(self, what: str, entry: str, first: int, kind: tuple[MemoryType, bool], cr0: int = 0) -> None:
        """Pages that the guest touches for the first time have to be mapped with this type."""
        self.judge(what, self.touch(entry, self.memory.gpa + first * PAGE_SIZE, 2, cr0), kind)

    def judge(self, what: str, mapped: list[tuple[MemoryType, bool]], kind: tuple[MemoryType, bool]) -> None:
        """Every mapping has to be of this type, and there has to be one."""
        if not mapped:
            self._context.skip(f"the trace has 0 entries for {what}: they are mapped already, or in another way")
        seen = sorted({(type.name, ignored) for type, ignored in mapped})
        equal(f"type of {what}, and whether PAT is ignored", seen, [(kind[0].name, kind[1])])

    def disable_quirk(self) -> None:
        """Have KVM honour the guest's PAT."""
        succeeds(
            "disabling KVM_X86_QUIRK_IGNORE_GUEST_PAT",
            self.guest.vm.enable_cap, lib.KVM_CAP_DISABLE_QUIRKS2, int(Quirk.IGNORE_GUEST_PAT),
        )  # fmt: skip

    def set_anew(self) -> None:
        """Remove the slot and set it again."""
        self.guest.vm.set_memory_region(self.memory.slot, self.memory.gpa, 0, self.memory.address)
        self.memory.register()


@clause("pat.ept-default", arch="x86", needs=(*_NEEDS, PAT_IGNORED))
def default(context: Context) -> None:
    """By default EPT maps guest memory write-back and ignores the guest's PAT, whether it is read or written first.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_get_mt_mask; Documentation/virt/kvm/api.rst 7.31.
    """
    mapped = _Mapped(context)
    mapped.expect("pages that are read", "read", 0, _FORCED_WB)
    mapped.expect("pages that are written", "dirty", 2, _FORCED_WB)
    mapped.set_anew()
    mapped.expect("pages of a slot that was set anew", "dirty", 0, _FORCED_WB)


@clause("pat.ept-quirk-disabled", arch="x86", needs=(*_NEEDS, PAT_QUIRK))
def quirk_disabled(context: Context) -> None:
    """With KVM_X86_QUIRK_IGNORE_GUEST_PAT disabled EPT maps guest memory write-back and leaves the rest to PAT.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_ignore_guest_pat; Documentation/virt/kvm/api.rst 7.31; Linux 6.16.
    """
    mapped = _Mapped(context)
    mapped.disable_quirk()
    mapped.expect("pages that are read", "read", 0, _WB)
    mapped.expect("pages that are written", "dirty", 2, _WB)


@clause("pat.ept-quirk-late", arch="x86", needs=(*_NEEDS, PAT_QUIRK))
def quirk_late(context: Context) -> None:
    """Once the quirk is disabled, pages mapped from then on leave the rest to PAT, those of a slot set anew too.

    Pages that are mapped already stay as they are, which nothing documents: it is recorded.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_ignore_guest_pat; arch/x86/kvm/x86.c, kvm_vm_ioctl_enable_cap (no zap).
    """
    mapped = _Mapped(context)
    mapped.expect("pages before", "dirty", 0, _FORCED_WB)
    mapped.disable_quirk()
    again = mapped.touch("dirty", mapped.memory.gpa, 2)
    context.note(f"KVM mapped {len(again)} of 2 pages anew when the quirk was disabled")
    mapped.expect("pages behind", "dirty", 2, _WB)
    mapped.set_anew()
    mapped.expect("the first pages in a slot that was set anew", "dirty", 0, _WB)


@clause("pat.ept-mtrr-cd", arch="x86", needs=(*_NEEDS, PAT_IGNORED))
def others_have_no_say(context: Context) -> None:
    """Neither the guest's MTRRs nor CR0.CD change what EPT says of its memory.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_get_mt_mask. In Linux 6.1 they have a say where a non-coherent device is, in
    6.12 no longer.
    """
    mapped = _Mapped(context)
    vcpu = mapped.guest.vcpu
    for index, value in (
        (_FIRST_RANGE, _GPA | MemoryType.UC),
        (_FIRST_RANGE + 1, (1 << 32) - (1 << 20) | _VALID_RANGE),
        (Msr.MTRR_DEF_TYPE, _ENABLED | MemoryType.UC),
    ):
        if not msr.set_msr(vcpu, index, value):
            raise RuntimeError(f"KVM refuses {value:#x} for {msr.name(index)}")
    mapped.expect("pages that the MTRRs say are uncached", "dirty", 0, _FORCED_WB)
    mapped.expect("pages with CR0.CD", "dirty", 2, _FORCED_WB, cr0=_CR0_CD)
    if context.host.facts.memory_types.quirks & Quirk.IGNORE_GUEST_PAT:
        mapped.disable_quirk()
        mapped.expect("such pages with PAT honoured", "dirty", 4, _WB)
        mapped.expect("pages with CR0.CD and PAT honoured", "dirty", 6, _WB, cr0=_CR0_CD)


@clause("pat.ept-device", arch="x86", needs=_NEEDS)
def device(context: Context) -> None:
    """Device memory of the host's in a memslot is uncached in EPT, with the quirk and without, and never write-back.

    The device is the host's HPET, whose registers the guest reads.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_get_mt_mask (is_mmio); arch/x86/kvm/mmu/spte.c, kvm_is_mmio_pfn.
    """
    try:
        fd = os.open("/dev/hpet", os.O_RDONLY)
    except OSError as error:
        context.skip(f"the registers of a device that any process may read: /dev/hpet is {error.strerror}")
    try:
        area = context.own(mmap.mmap(fd, PAGE_SIZE, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ))
    except OSError as error:
        context.skip(
            f"the registers of a device that any process may read: /dev/hpet is not mapped, {error.strerror}"
        )
    finally:
        os.close(fd)
    trace = _trace(context)
    quirks = (False, True) if context.host.facts.memory_types.quirks & Quirk.IGNORE_GUEST_PAT else (False,)
    for honoured in quirks:
        mapped = _Mapped(context, trace)
        if honoured:
            mapped.disable_quirk()
        with ffi.from_buffer("uint8_t[]", area) as buffer:
            address = int(ffi.cast("uintptr_t", buffer))
        mapped.guest.vm.set_memory_region(_SLOT_OF_DEVICE, _DEVICE_GPA, PAGE_SIZE, address)
        mapped.judge("device memory", mapped.touch("read", _DEVICE_GPA, 1), _UC)
        mapped.expect("memory beside it", "read", 0, _WB if honoured else _FORCED_WB)
