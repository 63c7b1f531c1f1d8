# SPDX-License-Identifier: Apache-2.0
"""The rows of FIRMWARE and CACHES: PSCI's version, mitigations, bitmaps of hypercalls, CCSIDR_EL1 of every level."""

from __future__ import annotations

import errno
from collections.abc import Callable

from vmm.arm64.registers import SYSTEM, Register, cache, firmware
from vmm.arm64.vcpu import read
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vcpu import Vcpu
from vmm.state.architecture import pieces
from vmm.state.arm64.world.facts import ALL, own
from vmm.state.piece import RegisterSet
from vmm.state.world.fields import RegisterCodec
from vmm.state.world.row import After, Bits, Free, Fresh, Of, OneOf, Refusal, Row, Untold
from vmm.state.world.table import Table

__all__ = ["CACHES", "FIRMWARE"]

_SET = "arch/arm64/kvm/hypercalls.c, kvm_arm_set_fw_reg"
_VERSION, _FIRST, _SECOND, _THIRD = (firmware(number) for number in range(4))
_BMAP = "arch/arm64/kvm/hypercalls.c, kvm_arm_init_hypercalls, kvm_arm_set_fw_reg_bmap"


def _part(name: str) -> RegisterSet:
    piece = pieces("arm64")[name]
    assert isinstance(piece, RegisterSet)
    return piece


def _older(vcpu: Vcpu, version: int) -> int:
    """Return a version, or its own where that is older."""
    return min(version, read(vcpu, _VERSION))


def _level(register: Register, beyond: tuple[int, ...]) -> Row:
    """A mitigation: it may be said to be less than it is, which KVM then does not show."""
    return Row(register.name, f"{_SET}, get_kernel_wa_level", values=Of(0, 0),
               fit=lambda vcpu, _: own(register)(vcpu),
               fresh=OneOf((0, 1, 2, 3), "how the CPU is affected, and what the firmware does"), init=After.KEPT,
               masked=[(0, own(register))], refused=[Refusal(value, errno.EINVAL) for value in beyond])  # fmt: skip


def _bitmap(number: int, first: int, *values: int) -> Row:
    register = firmware(number, bitmap=True)
    return Row(register.name, _BMAP, fresh=Bits(first) if first else 0, values=Of(*values), init=After.KEPT,
               runs=False, refused=[Refusal(1 << 63, errno.EINVAL), Refusal(ALL, errno.EINVAL)])  # fmt: skip


_FIRMWARE = _part("FIRMWARE")
FIRMWARE = Table(
    "firmware",
    _FIRMWARE,
    RegisterCodec(_FIRMWARE),
    [
        Row("PSCI_VERSION", f"{_SET}; include/kvm/arm_psci.h, KVM_ARM_PSCI_LATEST", fresh=Bits(0x10000),
            values=Of(0x10001, 0x10000, 2, 2), fit=_older, init=After.KEPT,
            refused=[Refusal(value, errno.EINVAL) for value in (0, 1, 3, 0x7FFF_0000, 1 << 32 | 0x10001)]),
        _level(_FIRST, (3, 4, 0x10, 1 << 32)),
        _level(_SECOND, (4, 0x11, 0x13, 0x20, 1 << 32)),
        _level(_THIRD, (3, 4, 0x10, 1 << 32)),
        _bitmap(0, 1, 0, 1, 0),
        _bitmap(1, 1, 0, 1, 0),
        _bitmap(2, 3, 0, 2, 1, 3),
        _bitmap(3, 0, 1, 3, 2, 0),
    ],
)  # fmt: skip

# --- caches ---

_CACHES = _part("CACHES")
_EVERY = 14  # since Linux 6.3 every cache that CSSELR_EL1 can select is listed, and can be written
_GEOMETRY, _LINE = 0x0FFF_FFF8, 7
_SOURCE = "arch/arm64/kvm/sys_regs.c, get_ccsidr, set_ccsidr (before 6.3 invariant)"


def _writable(vcpu: Vcpu) -> bool:
    try:
        vcpu.get_one_reg(cache(_EVERY - 1))
    except KvmError:
        return False
    return True


def _shortest(vcpu: Vcpu, number: int) -> int:
    """Return CCSIDR_EL1.LineSize of the shortest line that CTR_EL0 tells of: DminLine, for instructions IminLine."""
    return max((read(vcpu, SYSTEM["CTR_EL0"]) >> (0 if number & 1 else 16) & 0xF) - 2, 0)


def _fresh(number: int) -> Callable[[Vcpu], Fresh]:
    return lambda vcpu: _shortest(vcpu, number) if _writable(vcpu) else Untold("before Linux 6.3 it is the CPU's own")


def _too_short(number: int) -> Callable[[Vcpu], int | None]:
    return lambda vcpu: _shortest(vcpu, number) - 1 if _shortest(vcpu, number) else None


def _geometry(number: int) -> Callable[[Vcpu, int], int]:
    return lambda vcpu, value: value if _writable(vcpu) else read(vcpu, cache(number))


CACHES = Table(
    "caches",
    _CACHES,
    RegisterCodec(_CACHES),
    [
        Row(f"CCSIDR[{number}]", _SOURCE, fresh=_fresh(number), values=Free(_GEOMETRY, _LINE), fit=_geometry(number),
            init=After.KEPT, refused=[Refusal(1 << 31, errno.EINVAL), Refusal(_too_short(number), errno.EINVAL)])
        for number in range(_EVERY)
    ],
)  # fmt: skip
