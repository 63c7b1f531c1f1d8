# SPDX-License-Identifier: Apache-2.0
"""The rows of SREGS: in real mode, as a vCPU begins, by either call; in long mode; and with PAE paging.

Of a mode all fields are written together. Values at reset: Intel SDM volume 3, table 11-1 (9.1.1), AMD APM volume 2,
table 14-1; in KVM arch/x86/kvm/x86.c, kvm_vcpu_reset, vmx/vmx.c, vmx_vcpu_reset, svm/svm.c, init_vmcb.
"""

from __future__ import annotations

import errno

from vmm.state.architecture import pieces
from vmm.state.piece import Structure
from vmm.state.world.fields import StructCodec
from vmm.state.world.row import ELSEWHERE, After, Canonical, Free, Made, Of, OneOf, Refusal, Row, Values
from vmm.state.world.table import Table

__all__ = ["SREGS", "SREGS_1", "SREGS_LONG", "SREGS_PAE"]

_RESET = "arch/x86/kvm/x86.c, kvm_vcpu_reset; Intel SDM volume 3, table 11-1"
_SEGMENTS = "arch/x86/kvm/vmx/vmx.c, vmx_vcpu_reset, seg_setup; svm/svm.c, init_vmcb, init_seg"
_SET_SREGS = "arch/x86/kvm/x86.c, __set_sregs_common, kvm_is_valid_sregs (regs.c in 7.2)"
_SREGS2 = "Documentation/virt/kvm/api.rst, KVM_GET_SREGS2, KVM_SET_SREGS2; arch/x86/kvm/x86.c, __set_sregs2"
_LATER = "another table has its values, in the mode that it is of"
_CD_NW, _ET = 0x6000_0000, 0x10
_ALL, _HIGH = (1 << 64) - 1, 1 << 32


def _segments(*names: str, field: str) -> str:
    return " ".join(f"{name}.{field}" for name in names)


_DATA = ("ds", "es", "fs", "gs", "ss")
_EVERY = ("cs", *_DATA, "tr", "ldt")

_PADDING = Row("*.padding *.padding[[]?[]]", "arch/x86/include/uapi/asm/kvm.h, struct kvm_segment, kvm_dtable",
               fresh=0, values=None, init=None)  # fmt: skip
# What both versions of the structure have, in real mode.
_REAL = (
    Row("cs.base", _SEGMENTS, fresh=0xFFFF_0000, values=Of(0x1234_5670, 0xF_FFF0, 0), runs=False),
    Row("cs.selector", _SEGMENTS, fresh=0xF000, values=Free(0xFFFC), runs=False),
    Row("cs.limit", _SEGMENTS, fresh=0xFFFF, values=Of(0xF_FFFF, 0xFFFF_FFFF, 0xFFFF), runs=False),
    Row("cs.type", f"{_SEGMENTS}: read and executed, or only readable", values=Of(0xB, 0x9, 0xF), runs=False,
        fresh=OneOf((0xB, 0xA), "KVM on AMD gives a segment that was not accessed yet")),
    Row(_segments("fs", "gs", field="base"), _SEGMENTS, fresh=0, values=Canonical()),
    Row(_segments("ds", "es", "ss", field="base"), _SEGMENTS, fresh=0, values=Free(0xFFFF_FFFF), runs=False),
    Row(_segments("tr", "ldt", field="base"), _SEGMENTS, fresh=0, values=Canonical(), runs=False),
    Row(_segments(*_DATA, field="selector"), _SEGMENTS, fresh=0, values=Free(0xFFF8), runs=False),
    Row(_segments("tr", "ldt", field="selector"), _SEGMENTS, fresh=0, values=Free(0xFFF8), runs=False),
    Row(_segments(*_EVERY, field="limit"), _SEGMENTS, fresh=0xFFFF, values=Of(0x1234, 0xFFFF_FFFF, 0xFFFF),
        runs=False),
    Row(_segments(*_DATA, field="type"), _SEGMENTS, fresh=OneOf((3, 2), "accessed, or not yet"),
        values=Of(0x3, 0x1, 0x7), runs=False),
    Row("tr.type", f"{_SEGMENTS}: a busy TSS of 32 or 16 bits", values=Of(0xB, 0x3), runs=False,
        fresh=OneOf((0xB, 3), "SEG_TYPE_BUSY_TSS16 on AMD")),
    Row("ldt.type", _SEGMENTS, fresh=2, values=Of(2, 2)),
    Row(_segments(*_EVERY, field="present"), _SEGMENTS, fresh=1, values=Of(1, 1)),
    Row(_segments(*_EVERY, field="dpl"), f"{_SEGMENTS}: {_LATER}", fresh=0, values=None),
    Row(_segments("cs", *_DATA, field="s"), _SEGMENTS, fresh=1, values=Of(1, 1)),
    Row(_segments("tr", "ldt", field="s"), _SEGMENTS, fresh=0, values=Of(0, 0)),
    Row(_segments("cs", *_DATA, field="db"), _SEGMENTS, fresh=0, values=Of(1, 0), runs=False),
    Row(_segments("tr", "ldt", field="db"), _SEGMENTS, fresh=0, values=Of(0, 0)),
    Row("cs.l", f"{_SET_SREGS}: not outside of 64-bit mode", fresh=0, values=None,
        refused=[Refusal(1, errno.EINVAL)]),
    Row(_segments(*_EVERY, field="l"), _SEGMENTS, fresh=0, values=None),
    Row(_segments("cs", *_DATA, field="avl"), _SEGMENTS, fresh=0, values=Of(1, 0), runs=False),
    Row(_segments("tr", "ldt", field="avl"), _SEGMENTS, fresh=0, values=Of(1, 0), runs=False),
    Row(_segments(*_EVERY, field="g"), f"{_SEGMENTS}; svm_get_segment: as the limit says", fresh=0,
        values=Of(0, 1, 0), runs=False),
    Row(_segments(*_EVERY, field="unusable"), f"{_SEGMENTS}: {_LATER}", fresh=0, values=None),
    _PADDING,
    Row("gdt.base idt.base", f"{_RESET}; {_SET_SREGS}", fresh=0, values=Canonical(), runs=False),
    Row("gdt.limit idt.limit", f"{_RESET}; {_SET_SREGS}", fresh=0xFFFF, values=Free(0xFFFF), runs=False),
    Row("cr0", _RESET, fresh=0x6000_0010, init=Made(lambda old: old & _CD_NW | _ET),
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
        fresh=0xFEE0_0900, values=Of(0xFEE0_0900, 0xFED9_0900), init=After.KEPT, runs=False,
        refused=[Refusal(0xFEE0_0901, errno.EINVAL), Refusal(1 << 62 | 0xFEE0_0900, errno.EINVAL)]),
)  # fmt: skip

SREGS = Table(
    "sregs",
    pieces("x86")["SREGS"],
    StructCodec("SREGS", "kvm_sregs2"),
    [
        *_REAL,
        Row("flags", f"{_SREGS2}: KVM_SREGS2_FLAGS_PDPTRS_VALID goes with PAE paging only", fresh=0, values=None,
            init=None, refused=[Refusal(bit, errno.EINVAL) for bit in (1, 2, 1 << 63)]),
        Row("pdptrs*", f"{_SREGS2}: without PAE paging there are none", fresh=0, values=None, init=None),
    ],
)  # fmt: skip

_INJECTED = "arch/x86/kvm/x86.c, __get_sregs, __set_sregs (regs.c in 7.2): the interrupt that is injected, of 256"
SREGS_1 = Table(
    "sregs-1",
    Structure("SREGS1", "kvm_sregs", 312, calls="SREGS"),
    StructCodec("SREGS1", "kvm_sregs"),
    [
        *_REAL,
        Row("interrupt_bitmap[[]0[]]", _INJECTED, fresh=0, values=Of(1 << 33, 0, 0, 0), runs=False),
        Row("interrupt_bitmap[[]1[]]", _INJECTED, fresh=0, values=Of(0, 1 << 5, 0, 0), runs=False),
        Row("interrupt_bitmap[[]2[]]", _INJECTED, fresh=0, values=Of(0, 0, 1 << 63, 0), runs=False),
        Row("interrupt_bitmap[[]3[]]", _INJECTED, fresh=0, values=Of(0, 0, 0, 1 << 63), runs=False),
    ],
)  # fmt: skip

_LONG_MODE = f"{_SET_SREGS}; Intel SDM volume 3, 3.4.5, 5.2.1; AMD APM volume 2, 4.7, 4.8"
_UNUSABLE = "vmx/vmx.c, vmx_segment_access_rights; svm/svm.c, svm_get_segment (by its presence)"


def _mode(fields: str, values: Values, *refused: int, source: str = _LONG_MODE) -> Row:
    refusals = [Refusal(value, errno.EINVAL) for value in refused]
    return Row(fields, source, fresh=None, values=values, runs=False, refused=refusals)


def _in(*names: str, **fields: Values) -> list[Row]:
    """Fields of segments."""
    return [_mode(_segments(*names, field=field), values) for field, values in fields.items()]


# 32-bit code at CPL 3, 64-bit code there with no data segment but SS, then at CPL 0. vmx_set_segment marks even an
# unusable segment accessed, so that is what they are.
SREGS_LONG = Table(
    "sregs-long",
    pieces("x86")["SREGS"],
    StructCodec("SREGS", "kvm_sregs2"),
    [
        *_in("cs", base=Of(0x1234_0000, 0, 0), limit=Of(0xF_FFFF, 0xFFFF_FFFF, 0xFFFF_FFFF), type=Of(0xB, 0xF, 0xB),
             selector=Of(0x23, 0x33, 0x10), dpl=Of(3, 3, 0), db=Of(1, 0, 0), l=Of(0, 1, 1), g=Of(0, 1, 1),
             avl=Of(0, 1, 0), s=Of(1, 1), present=Of(1, 1), unusable=Of(0, 0)),
        *_in("ss", base=Of(0x8765_4000, 0, 0), limit=Of(0xFFFF_FFFF, 0xF_FFFF, 0xFFFF), type=Of(7, 3, 3),
             selector=Of(0x2B, 0x2B, 0x18), dpl=Of(3, 3, 0), db=Of(1, 0, 1), g=Of(1, 0, 0), avl=Of(1, 0, 0),
             s=Of(1, 1), present=Of(1, 1), unusable=Of(0, 0)),
        *_in("fs", "gs", base=Canonical()),
        *_in("ds", "es", base=Of(0x4321_0000, 0, 0)),
        *_in("ds", "es", "fs", "gs", limit=Of(0xFFFF_FFFF, 0, 0xABCDE), type=Of(5, 1, 3), selector=Of(0x4B, 0, 0x18),
             dpl=Of(3, 0, 0), db=Of(1, 0, 0), g=Of(1, 0, 0), avl=Of(1, 0, 1), s=Of(1, 0, 1)),
        *(_mode(_segments("ds", "es", "fs", "gs", "ldt", field=field), values, source=_UNUSABLE)
          for field, values in (("present", Of(1, 0, 1)), ("unusable", Of(0, 1, 0)))),
        *_in("tr", "ldt", base=Canonical()),
        *_in("tr", limit=Of(0xF_FFFF, 0x206F, 0x67), type=Of(0xB, 0xB), selector=Of(0x40, 0x58, 0x40),
             dpl=Of(3, 0, 0), avl=Of(0, 1, 0), present=Of(1, 1), unusable=Of(0, 0)),
        *_in("ldt", limit=Of(0x1FF, 0, 0x7F), type=Of(2, 0, 2), selector=Of(0x70, 0, 0x68), dpl=Of(3, 0, 0),
             avl=Of(1, 0, 0)),
        *_in("gdt", "idt", base=Canonical(), limit=Free(0xFFFF)),
        _mode("cr0", Of(0xE000_0011, 0x8000_0011, 0x8005_0033), 0x8000_0010, 0x10, 0x8005_0033 | _HIGH),
        _mode("cr2", Canonical()),
        _mode("cr3", Of(0x1234_5000, 0x7FFF_F018, 0x1000), 1 << 60),
        _mode("cr4", Of(0x66C, 0x20, 0x6B0), 0x690),
        _mode("cr8", Of(0x6, 0xF, 0x9)),
        _mode("efer", Of(0x501, 0x500, 0x501), 0x101, 0x100),
        _mode("apic_base", Of(0xFEE0_0900, 0xFED9_0900, 0xFEE0_0900)),
        Row("flags", f"{_SREGS2}: long mode has no PDPTRs", fresh=None, values=None, init=None,
            refused=[Refusal(1, errno.EINVAL)]),
        ELSEWHERE,
    ],
)  # fmt: skip

_PDPTRS = f"{_SREGS2}; vmx/vmx.c, ept_load_pdptrs; Intel SDM volume 3, 4.4.1"
SREGS_PAE = Table(
    "sregs-pae",
    pieces("x86")["SREGS"],
    StructCodec("SREGS", "kvm_sregs2"),
    [
        *_in("cs", base=Of(0, 0), limit=Of(0xFFFF_FFFF, 0xFFFF_FFFF), type=Of(0xB, 0xB), selector=Of(0x10, 0x10),
             db=Of(1, 1), g=Of(1, 1)),
        *_in(*_DATA, limit=Of(0xFFFF_FFFF, 0xFFFF_FFFF), type=Of(3, 3), selector=Of(0x18, 0x18), db=Of(1, 1),
             g=Of(1, 1)),
        _mode("cr0", Of(0x8000_0031, 0x8001_0031), source=_PDPTRS),
        _mode("cr3", Of(0x1000, 0x7FFF_F020), source=_PDPTRS),
        _mode("cr4", Of(0x20, 0x620), 0x10, source=_PDPTRS),
        _mode("efer", Of(0, 0), 0x400, source=_PDPTRS),
        _mode("flags", Of(1, 1), 3, 1 << 63 | 1, source=_PDPTRS),
        _mode("pdptrs[[]0[]]", Of(0x2001, 0x7FFF_E019), source=_PDPTRS),
        _mode("pdptrs[[]1[]]", Of(0x3001, 0), source=_PDPTRS),
        _mode("pdptrs[[]2[]]", Of(0, 0x1234_5001), source=_PDPTRS),
        _mode("pdptrs[[]3[]]", Of(0x5019, 0x6001), source=_PDPTRS),
        ELSEWHERE,
    ],
)  # fmt: skip
