# SPDX-License-Identifier: Apache-2.0
"""The rows of REGS, SREGS, DEBUGREGS and MP_STATE.

Values at reset: Intel SDM volume 3, table 11-1 (9.1.1), AMD APM volume 2, table 14-1; in KVM arch/x86/kvm/x86.c,
kvm_vcpu_reset, vmx/vmx.c, vmx_vcpu_reset, svm/svm.c, init_vmcb.
"""

from __future__ import annotations

import errno

from vmm.kvm.vcpu import Vcpu
from vmm.state.architecture import pieces
from vmm.state.world.fields import StructCodec
from vmm.state.world.row import After, Canonical, Free, Of, OneOf, Refusal, Row, Untold
from vmm.state.world.table import Table
from vmm.x86.cpuid import Cpuid

__all__ = ["DEBUGREGS", "MP_STATE", "REGS", "SREGS"]

_RESET = "arch/x86/kvm/x86.c, kvm_vcpu_reset; Intel SDM volume 3, table 11-1"
_SEGMENTS = "arch/x86/kvm/vmx/vmx.c, vmx_vcpu_reset, seg_setup; svm/svm.c, init_vmcb, init_seg"
_SET_SREGS = "arch/x86/kvm/x86.c, __set_sregs_common, kvm_is_valid_sregs (regs.c in 7.2)"
_ALL = (1 << 64) - 1
_STATUS, _FLAGS = 0x8D5, 2  # OF SF ZF AF PF CF; the bit that is always 1
_HIGH = 1 << 32
_UNUSED = "bytes without a meaning, which KVM neither checks nor keeps"
_MODE = "the modes of a vCPU are chosen with their other parts: the clauses on SREGS do"


def _segments(*names: str, field: str) -> str:
    return " ".join(f"{name}.{field}" for name in names)


_DATA = ("ds", "es", "fs", "gs", "ss")
_EVERY = ("cs", *_DATA, "tr", "ldt")


def _signature(vcpu: Vcpu) -> int:
    """EAX of the guest's CPUID leaf 1."""
    table = vcpu.chosen.get("CPUID")
    return 0x600 if table is None else Cpuid.unpack(table).get(1).eax


REGS = Table(
    "regs",
    pieces("x86")["REGS"],
    StructCodec("REGS", "kvm_regs"),
    [
        Row("rdx", f"{_RESET} (DX: the CPU's signature, which a vCPU without CPUID has as 0x600)",
            fresh=0x600, init=_signature, values=Free(_ALL)),
        Row("rip", _RESET, fresh=0xFFF0, values=Canonical(), runs=False, kept=Untold("KVM_RUN moves it")),
        Row("rflags", f"{_RESET}; __set_regs sets the bit that is always 1", fresh=_FLAGS,
            values=Free(_STATUS, _FLAGS), masked=[(0, _FLAGS)]),
        Row("*", _RESET, fresh=0, values=Free(_ALL)),
    ],
)  # fmt: skip

SREGS = Table(
    "sregs",
    pieces("x86")["SREGS"],
    StructCodec("SREGS", "kvm_sregs2"),
    [
        Row("cs.base", _SEGMENTS, fresh=0xFFFF_0000, values=Of(0x1234_5670, 0xF_FFF0, 0), runs=False),
        Row("cs.selector", _SEGMENTS, fresh=0xF000, values=Free(0xFFFC), runs=False),
        Row("cs.limit", _SEGMENTS, fresh=0xFFFF, values=Of(0xF_FFFF, 0x1234, 0xFFFF), runs=False),
        Row("cs.type", f"{_SEGMENTS}: read and executed, or only readable", values=Of(0xB, 0x9, 0xF), runs=False,
            fresh=OneOf((0xB, 0xA), "KVM on AMD gives a segment that was not accessed yet")),
        Row(_segments("fs", "gs", field="base"), _SEGMENTS, fresh=0, values=Canonical()),
        Row(_segments("ds", "es", "ss", field="base"), _SEGMENTS, fresh=0, values=Free(0xFFFF_FFFF), runs=False),
        Row(_segments("tr", "ldt", field="base"), _SEGMENTS, fresh=0, values=Canonical(), runs=False),
        Row(_segments(*_DATA, field="selector"), _SEGMENTS, fresh=0, values=Free(0xFFF8), runs=False),
        Row(_segments("tr", "ldt", field="selector"), _SEGMENTS, fresh=0, values=Free(0xFFF8), runs=False),
        Row(_segments(*_EVERY, field="limit"), _SEGMENTS, fresh=0xFFFF, values=Of(0x1234, 0xF_FFFF, 0xFFFF),
            runs=False),
        Row(_segments(*_DATA, field="type"), _SEGMENTS, fresh=OneOf((3, 2), "accessed, or not yet"),
            values=Of(0x3, 0x1, 0x7), runs=False),
        Row("tr.type", f"{_SEGMENTS}: a busy TSS of 32 or 16 bits", values=Of(0xB, 0x3), runs=False,
            fresh=OneOf((0xB, 3), "SEG_TYPE_BUSY_TSS16 on AMD")),
        Row("ldt.type", _SEGMENTS, fresh=2, values=Of(2, 2)),
        Row(_segments(*_EVERY, field="present"), _SEGMENTS, fresh=1, values=Of(1, 1)),
        Row(_segments(*_EVERY, field="dpl"), _SEGMENTS, fresh=0,
            values=Untold("AMD has one CPL for SS and the VMM's other segments: sregs clauses give segments a DPL")),
        Row(_segments("cs", *_DATA, field="s"), _SEGMENTS, fresh=1, values=Of(1, 1)),
        Row(_segments("tr", "ldt", field="s"), _SEGMENTS, fresh=0, values=Of(0, 0)),
        Row(_segments("cs", *_DATA, field="db"), _SEGMENTS, fresh=0, values=Of(1, 0), runs=False),
        Row(_segments("tr", "ldt", field="db"), _SEGMENTS, fresh=0, values=Of(0, 0)),
        Row(_segments(*_EVERY, field="l"), _SEGMENTS, fresh=0, values=Untold(_MODE)),
        Row(_segments("cs", *_DATA, field="avl"), _SEGMENTS, fresh=0, values=Of(1, 0), runs=False),
        Row(_segments("tr", "ldt", field="avl"), _SEGMENTS, fresh=0, values=Of(1, 0), runs=False),
        Row(_segments(*_EVERY, field="g"), f"{_SEGMENTS}; svm_get_segment makes it of the limit", fresh=0,
            values=Untold("KVM on AMD shows it as the limit says: a limit above 0xfffff has it")),
        Row(_segments(*_EVERY, field="unusable"), _SEGMENTS, fresh=0,
            values=Untold("an unusable segment has no other fields: the clauses on SREGS have some")),
        Row("*.padding *.padding[[]?[]]", "arch/x86/include/uapi/asm/kvm.h, struct kvm_segment, kvm_dtable", fresh=0,
            values=None, init=None),
        Row("gdt.base idt.base", f"{_RESET}; {_SET_SREGS}", fresh=0, values=Canonical(), runs=False),
        Row("gdt.limit idt.limit", f"{_RESET}; {_SET_SREGS}", fresh=0xFFFF, values=Free(0xFFFF), runs=False),
        Row("cr0", _RESET, fresh=0x6000_0010, init=Untold("INIT keeps CD and NW: init.* look at it"),
            values=Of(0x6000_0030, 0x10, 0x4000_0011, 0x3A), runs=False,
            refused=[Refusal(0x8000_0010, errno.EINVAL), Refusal(0x2000_0010, errno.EINVAL),
                     Refusal(1 << 32 | 0x10, errno.EINVAL)]),
        Row("cr2", _RESET, fresh=0, values=Free(_ALL)),
        Row("cr3", _RESET, fresh=0, values=Of(0x1234_5000, 0x7FFF_F018, 0), runs=False),
        Row("cr4", f"{_RESET}; {_SET_SREGS}", fresh=0, values=Of(0x8, 0x90, 0x4, 0x600), runs=False,
            refused=[Refusal(1 << 15, errno.EINVAL), Refusal(1 << 31, errno.EINVAL), Refusal(1 << 63, errno.EINVAL)]),
        Row("cr8", f"{_RESET}; {_SET_SREGS} (without an effect above 15)", fresh=0, values=Free(0xF)),
        Row("efer", f"{_RESET}; arch/x86/kvm/x86.c, kvm_valid_efer", fresh=0, values=Of(1, 0), runs=False,
            refused=[Refusal(0x400, errno.EINVAL), Refusal(1 << 1, errno.EINVAL), Refusal(1 << 63, errno.EINVAL)]),
        Row("apic_base", f"{_RESET}; arch/x86/kvm/lapic.c, kvm_apic_set_base; Intel SDM volume 3, 12.4.4",
            fresh=0xFEE0_0900, init=After.KEPT, values=Of(0xFEE0_0900, 0xFED9_0900), runs=False,
            refused=[Refusal(0xFEE0_0901, errno.EINVAL), Refusal(1 << 62 | 0xFEE0_0900, errno.EINVAL)]),
        Row("flags", "Documentation/virt/kvm/api.rst, KVM_SET_SREGS2", fresh=0,
            values=Untold("KVM_SREGS2_FLAGS_PDPTRS_VALID goes with PAE paging: the clauses on SREGS have it"),
            refused=[Refusal(2, errno.EINVAL), Refusal(1 << 63, errno.EINVAL)]),
        Row("pdptrs*", "Documentation/virt/kvm/api.rst, KVM_GET_SREGS2", fresh=0,
            values=Untold("they count with KVM_SREGS2_FLAGS_PDPTRS_VALID only: the clauses on SREGS have it")),
    ],
)  # fmt: skip

_BREAKPOINTS = "arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_set_debugregs (regs.c in 7.2)"
DEBUGREGS = Table(
    "debugregs",
    pieces("x86")["DEBUGREGS"],
    StructCodec("DEBUGREGS", "kvm_debugregs"),
    [
        Row("db*", f"{_RESET}; {_BREAKPOINTS}", fresh=0, values=Canonical()),
        Row("dr6", f"{_RESET}; {_BREAKPOINTS}; Intel SDM volume 3, 19.2.3", fresh=0xFFFF_0FF0,
            values=Of(0xFFFF_0FF5, 0xFFFF_6FFA, 0xFFFF_0FF0),
            refused=[Refusal(_HIGH | 0xFFFF_0FF0, errno.EINVAL), Refusal(1 << 63 | 0xFFFF_0FF0, errno.EINVAL)]),
        Row("dr7", f"{_RESET}; {_BREAKPOINTS}", fresh=0x400, values=Of(0xDDDD_0700, 0x400),
            refused=[Refusal(_HIGH | 0x400, errno.EINVAL), Refusal(1 << 63 | 0x400, errno.EINVAL)]),
        Row("flags", f"Documentation/virt/kvm/api.rst, 4.35; {_BREAKPOINTS}", fresh=0, values=None, init=None,
            refused=[Refusal(1, errno.EINVAL), Refusal(1 << 63, errno.EINVAL)]),
        Row("reserved*", "arch/x86/include/uapi/asm/kvm.h, struct kvm_debugregs", fresh=0, values=None, init=None),
    ],
)  # fmt: skip

_STATES = "Documentation/virt/kvm/api.rst, 4.38, 4.39; arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_set_mpstate"
MP_STATE = Table(
    "mp-state",
    pieces("x86")["MP_STATE"],
    StructCodec("MP_STATE", "kvm_mp_state"),
    [
        Row("mp_state", _STATES, fresh=0, values=Of(3, 0, 1), runs=False, init=Untold("INIT makes it wait for SIPI"),
            refused=[Refusal(6, errno.EINVAL), Refusal(0xFFFF_FFFF, errno.EINVAL)]),
    ],
)  # fmt: skip
