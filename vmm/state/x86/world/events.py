# SPDX-License-Identifier: Apache-2.0
"""The rows of EVENTS: as every VM has them, as one has them that asked for more, and those of system management mode.

INIT takes away whatever is pending or injected: arch/x86/kvm/x86.c, kvm_vcpu_reset.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from vmm.state.architecture import pieces
from vmm.state.world.fields import StructCodec
from vmm.state.world.row import ELSEWHERE, Free, Of, OneOf, Refusal, Row, Untold, Values
from vmm.state.world.table import Table

__all__ = ["EVENTS", "EVENTS_ALL", "SMM"]

_EVENTS = (
    "Documentation/virt/kvm/api.rst, 4.31, 4.32; arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_get_vcpu_events, "
    "kvm_vcpu_ioctl_x86_set_vcpu_events"
)
# KVM_VCPUEVENT_VALID_NMI_PENDING, _SHADOW and _SMM; with the capabilities _PAYLOAD and _TRIPLE_FAULT too.
_VALID, _VALID_ALL = 0xD, 0x3D
_MOV_SS, _STI = 1, 2  # KVM_X86_SHADOW_INT_
_NMI, _VECTORS = 2, 32


def _shadow(value: int) -> OneOf:
    """What the shadow of one instruction is read as."""
    return OneOf((value, _STI | _MOV_SS) if value else (0,), "a VMCB has one bit for both: svm_get_interrupt_shadow")


def _flags(valid: int, *missing: int) -> Row:
    """The flags that a VM's events have; others are unknown, or want a capability."""
    refused = [Refusal(valid | bit, errno.EINVAL) for bit in (*missing, 1 << 6, 1 << 31)]
    return Row("flags", _EVENTS, fresh=valid, values=None, init=None, refused=refused)


def _exception(injected: Values, pending: Values | None, numbers: Values) -> Sequence[Row]:
    """Of the vectors those that KVM reports: it never shows #BP and #OF, which come anew."""
    return (
        Row("exception.injected", f"{_EVENTS} (kvm_exception_is_soft)", fresh=0, values=injected, runs=False),
        Row("exception.pending", _EVENTS, fresh=0, values=pending, runs=False, masked=[] if pending else [(1, 0)]),
        Row("exception.nr", _EVENTS, fresh=0, values=numbers, runs=False,
            refused=[Refusal(_NMI, errno.EINVAL), Refusal(_VECTORS, errno.EINVAL), Refusal(0xFF, errno.EINVAL)]),
        Row("exception.has_error_code", _EVENTS, fresh=0, values=Of(1, 1, 0), runs=False),
        Row("exception.error_code", _EVENTS, fresh=0, values=Of(0x1238, 0xABC4, 0), runs=False),
    )  # fmt: skip


_REST = (
    Row("interrupt.injected", _EVENTS, fresh=0, values=Of(1, 0, 1), runs=False),
    Row("interrupt.nr", _EVENTS, fresh=0, values=Free(0xFF), runs=False),
    Row("interrupt.soft", f"{_EVENTS}: an INTn comes anew", fresh=0, values=None, masked=[(1, 0)]),
    Row("interrupt.shadow", _EVENTS, fresh=0, values=Of(_MOV_SS, _STI, 0), reads=_shadow, runs=False,
        init=Untold("the instruction that a shadow is of is over once KVM_RUN has taken INIT")),
    Row("nmi.injected", _EVENTS, fresh=0, values=Of(1, 0, 1), runs=False),
    Row("nmi.pending", _EVENTS, fresh=0, values=Of(1, 1, 0), runs=False),
    Row("nmi.masked", _EVENTS, fresh=0, values=Of(1, 0, 1)),
    Row("nmi.pad reserved", f"{_EVENTS}; arch/x86/include/uapi/asm/kvm.h", fresh=0, values=None, init=None,
        masked=[(0x81, 0)]),
    Row("sipi_vector", f"{_EVENTS}: without KVM_VCPUEVENT_VALID_SIPI_VECTOR it is ignored", fresh=0, values=None,
        init=None, masked=[(0x55, 0)]),
    Row("smi.*", f"{_EVENTS}: a table of its own has their values", fresh=0, values=None),
)  # fmt: skip

EVENTS = Table(
    "events",
    pieces("x86")["EVENTS"],
    StructCodec("EVENTS", "kvm_vcpu_events"),
    [
        _flags(_VALID, 1 << 4, 1 << 5),
        *_exception(Of(1, 1, 1, 0), None, Of(13, 17, 6)),
        Row("exception_has_payload triple_fault.pending", f"{_EVENTS}: not without the capability", fresh=0,
            values=None, masked=[(1, 0)]),
        Row("exception_payload", _EVENTS, fresh=0, values=None, init=None),
        *_REST,
    ],
)  # fmt: skip

EVENTS_ALL = Table(
    "events-all",
    pieces("x86")["EVENTS"],
    StructCodec("EVENTS", "kvm_vcpu_events"),
    [
        _flags(_VALID_ALL),
        *_exception(Of(0, 1, 0), Of(1, 0, 1), Of(14, 13, 1)),
        Row("exception_has_payload", f"{_EVENTS}; api.rst, 7.6 KVM_CAP_EXCEPTION_PAYLOAD", fresh=0,
            values=Of(1, 0, 1), runs=False),
        Row("exception_payload", f"{_EVENTS}; Intel SDM volume 3, 6.15 (CR2 of #PF, DR6 of #DB)", fresh=0,
            values=Of(0x7777_2468, 0, 0x4001), runs=False),
        Row("triple_fault.pending", f"{_EVENTS}; api.rst, KVM_CAP_X86_TRIPLE_FAULT_EVENT", fresh=0,
            values=Of(1, 0, 1), runs=False),
        *_REST,
    ],
)  # fmt: skip

_MODE = f"{_EVENTS}; arch/x86/kvm/smm.c (x86.c before Linux 6.2), kvm_smm_changed"
SMM = Table(
    "smm",
    pieces("x86")["EVENTS"],
    StructCodec("EVENTS", "kvm_vcpu_events"),
    [
        Row("smi.smm", _MODE, fresh=0, values=Of(1, 1, 0), runs=False),
        Row("smi.pending", _MODE, fresh=0, values=Of(1, 0, 1), runs=False),
        Row("smi.smm_inside_nmi", f"{_MODE}: outside of SMM it is 0", fresh=0, values=Of(0, 1, 0), runs=False),
        Row("smi.latched_init", f"{_MODE}; lapic.c, kvm_lapic_latched_init", fresh=0, values=Of(1, 0, 1), runs=False),
        ELSEWHERE,
    ],
)  # fmt: skip
