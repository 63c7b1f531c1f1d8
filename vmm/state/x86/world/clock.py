# SPDX-License-Identifier: Apache-2.0
"""The rows of CLOCK, the VM's kvmclock. Source: Documentation/virt/kvm/api.rst, 4.29, 4.30; arch/x86/kvm/x86.c."""

from __future__ import annotations

import errno

from vmm.state.piece import Structure
from vmm.state.world.fields import StructCodec
from vmm.state.world.row import OneOf, Refusal, Row, Untold
from vmm.state.world.table import Table

__all__ = ["CLOCK", "REALTIME"]

_STABLE, REALTIME, _HOST_TSC = 2, 4, 8  # KVM_CLOCK_
_CLOCK = "arch/x86/kvm/x86.c, get_kvmclock, kvm_vm_ioctl_set_clock"
_TOLD = OneOf(
    tuple(sorted({a | b | c for a in (0, _STABLE) for b in (0, REALTIME) for c in (0, _HOST_TSC)})),
    "which of them there are depends on the host's clock source",
)

CLOCK = Table(
    "clock",
    Structure("CLOCK", "kvm_clock_data", 48),
    StructCodec("CLOCK", "kvm_clock_data"),
    [
        Row("clock", f"{_CLOCK}: a property of its own", fresh=Untold("it counts"), values=None, init=None),
        Row("flags", _CLOCK, fresh=_TOLD, values=None, init=None,
            refused=[Refusal(bit, errno.EINVAL) for bit in (1, 1 << 4, 1 << 31)]),
        Row("realtime host_tsc", _CLOCK, fresh=Untold("the host's time, if flags say so"), values=None, init=None),
        Row("pad*", f"{_CLOCK} (the structure is zeroed)", fresh=0, values=None, init=None),
    ],
)  # fmt: skip
