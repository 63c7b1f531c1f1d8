# SPDX-License-Identifier: Apache-2.0
"""The rows of VLS, EVENTS and MP_STATE: vector lengths, what is pending, and whether the vCPU runs."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping

from vmm.arm64.registers import VLS as REGISTER
from vmm.kvm.vcpu import Vcpu
from vmm.state.architecture import pieces
from vmm.state.arm64.world.facts import has_ras
from vmm.state.piece import raw
from vmm.state.value import Part
from vmm.state.world.fields import StructCodec
from vmm.state.world.row import After, Bits, Free, Of, OneOf, Refusal, Row
from vmm.state.world.table import Table

__all__ = ["EVENTS", "MP_STATE", "VLS"]

_EVENTS = "arch/arm64/kvm/guest.c, __kvm_arm_vcpu_get_events, __kvm_arm_vcpu_set_events"
_CHECKED = "arch/arm64/kvm/arm.c, kvm_arm_vcpu_set_events"
_ISS = 0x1FF_FFFF


class _Lengths:
    """The set of vector lengths as one number."""

    def names(self) -> Iterable[str]:
        """Return its name."""
        return ("VLS",)

    def bits(self, field: str) -> int:
        """Return how wide the set is."""
        return 8 * REGISTER.size

    def split(self, part: Part) -> dict[str, int]:
        """Return the number."""
        return {"VLS": int.from_bytes(raw("VLS", part, REGISTER.size), "little")}

    def join(self, part: Part, values: Mapping[str, int]) -> Part:
        """Return the register."""
        return values["VLS"].to_bytes(REGISTER.size, "little") if "VLS" in values else part


VLS = Table(
    "vls",
    pieces("arm64")["VLS"],
    _Lengths(),
    [
        Row("VLS", "arch/arm64/kvm/guest.c, get_sve_vls, set_sve_vls; kvm_arm_vcpu_finalize", fresh=Bits(1),
            values=None, init=After.KEPT,
            refused=[Refusal(lambda _, fresh: fresh, errno.EPERM), Refusal(1, errno.EPERM), Refusal(0, errno.EPERM)]),
    ],
)  # fmt: skip


def _syndrome(vcpu: Vcpu, value: int, _: int) -> int:
    return value if has_ras(vcpu) else 0


def _reserved(bit: int) -> Callable[[Vcpu, int], int | None]:
    return lambda vcpu, _: 1 << bit if has_ras(vcpu) else None


EVENTS = Table(
    "events",
    pieces("arm64")["EVENTS"],
    StructCodec("EVENTS", "kvm_vcpu_events"),
    [
        # An SError that is pending cannot be taken back: what is set to 0 stays.
        Row("exception.serror_pending", f"{_EVENTS}, KVM_SET_VCPU_EVENTS", fresh=0, values=Of(1, 1)),
        Row("exception.serror_has_esr", f"{_EVENTS}: what the CPU is", values=None, init=After.KEPT,
            fresh=OneOf((0, 1), "whether the CPU has the RAS extension and the kernel uses it")),
        Row("exception.serror_esr", f"{_EVENTS}: ISS only", fresh=0, values=Free(_ISS), fit=_syndrome,
            refused=[Refusal(_reserved(bit), errno.EINVAL) for bit in (25, 32, 63)]),
        # It is delivered when it is set, and never told: the clauses on events give one to a guest.
        Row("exception.ext_dabt_pending", _EVENTS, fresh=0, values=None),
        Row("exception.pad reserved[[]*]", _CHECKED, fresh=0, values=None,
            refused=[Refusal(1, errno.EINVAL), Refusal(1 << 31, errno.EINVAL)]),
    ],
)  # fmt: skip

_STATES = "Documentation/virt/kvm/api.rst, 4.38, 4.39; arch/arm64/kvm/arm.c, kvm_arch_vcpu_ioctl_set_mpstate"
MP_STATE = Table(
    "mp-state",
    pieces("arm64")["MP_STATE"],
    StructCodec("MP_STATE", "kvm_mp_state"),
    [
        Row("mp_state", _STATES, fresh=0, values=Of(5, 0), runs=False,
            refused=[Refusal(value, errno.EINVAL) for value in (1, 2, 3, 4, 6, 11, 0xFFFF_FFFF)]),
    ],
)  # fmt: skip
