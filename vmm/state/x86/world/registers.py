# SPDX-License-Identifier: Apache-2.0
"""The rows of REGS, DEBUGREGS and MP_STATE.

Values at reset: Intel SDM volume 3, table 11-1 (9.1.1), AMD APM volume 2, table 14-1; in KVM arch/x86/kvm/x86.c,
kvm_vcpu_reset, vmx/vmx.c, vmx_vcpu_reset, svm/svm.c, init_vmcb.
"""

from __future__ import annotations

import errno

from vmm.kvm.vcpu import Vcpu
from vmm.state.architecture import pieces
from vmm.state.world.fields import StructCodec
from vmm.state.world.row import Canonical, Free, Of, Refusal, Row, Untold
from vmm.state.world.table import Table
from vmm.x86.cpuid import given

__all__ = ["DEBUGREGS", "MP_STATE", "REGS"]

_RESET = "arch/x86/kvm/x86.c, kvm_vcpu_reset; Intel SDM volume 3, table 11-1"
_ALL = (1 << 64) - 1
_STATUS, _FLAGS = 0x8D5, 2  # OF SF ZF AF PF CF; the bit that is always 1
_CONTROL = 0x20_3200  # ID, IOPL and IF, with which a guest without interrupts runs as well
_HIGH = 1 << 32


REGS = Table(
    "regs",
    pieces("x86")["REGS"],
    StructCodec("REGS", "kvm_regs"),
    [
        Row("rdx", f"{_RESET} (DX: the CPU's signature, which a vCPU without CPUID has as 0x600)",
            fresh=0x600, init=lambda vcpu: given(vcpu).get(1).eax,
            values=Free(_ALL)),
        Row("rip", _RESET, fresh=0xFFF0, values=Canonical(), runs=False, kept=Untold("KVM_RUN moves it")),
        Row("rflags", f"{_RESET}; __set_regs sets the bit that is always 1", fresh=_FLAGS,
            values=Free(_STATUS | _CONTROL, _FLAGS), masked=[(0, _FLAGS)]),
        Row("*", _RESET, fresh=0, values=Free(_ALL)),
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

_RUNNABLE, _INIT_RECEIVED = 0, 2  # KVM_MP_STATE_
_STATES = "Documentation/virt/kvm/api.rst, 4.38, 4.39; arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_set_mpstate"


def _waits(vcpu: Vcpu) -> int:
    """INIT lets the first processor run, and has the others wait for SIPI: kvm_apic_accept_events."""
    return _INIT_RECEIVED if vcpu.identifier else _RUNNABLE


MP_STATE = Table(
    "mp-state",
    pieces("x86")["MP_STATE"],
    StructCodec("MP_STATE", "kvm_mp_state"),
    [
        Row("mp_state", _STATES, fresh=0, values=Of(3, 0, 1), runs=False, init=_waits,
            refused=[Refusal(6, errno.EINVAL), Refusal(0xFFFF_FFFF, errno.EINVAL)]),
    ],
)  # fmt: skip
