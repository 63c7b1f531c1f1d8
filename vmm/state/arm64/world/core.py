# SPDX-License-Identifier: Apache-2.0
"""The rows of CORE and VECTORS: general registers, PSTATE, the banked SPSRs, V, Z, P, FFR, FPSR, FPCR."""

from __future__ import annotations

import errno

from vmm.arm64.vector import FPCR_BITS, FPSR_BITS
from vmm.kvm.vcpu import Vcpu
from vmm.state.architecture import pieces
from vmm.state.arm64.world.facts import ALL, lengths
from vmm.state.piece import RegisterSet
from vmm.state.world.fields import RegisterCodec
from vmm.state.world.row import After, Free, Of, Refusal, Row, Untold
from vmm.state.world.table import Table

__all__ = ["CORE", "FPSIMD", "VECTORS"]

_RESET = "arch/arm64/kvm/reset.c, kvm_reset_vcpu"
_SET = "arch/arm64/kvm/guest.c, set_core_reg"
_SVE = "arch/arm64/kvm/reset.c, kvm_vcpu_reset_sve; arch/arm64/kvm/guest.c, sve_reg_to_region"
# EL1 with its own stack pointer, debug exceptions, SErrors, IRQs and FIQs masked.
_EL1H, _EL1T, _EL0T = 0x3C5, 0x3C4, 0x3C0
_N, _Z, _C, _V = (1 << bit for bit in (31, 30, 29, 28))
# EL2, EL3, modes of AArch32 above its user mode, and numbers of no mode. Arm ARM, C5.2.19.
_NO_MODES = (0x8, 0xD, 0xC, 0x1, 0x6, 0x11, 0x12, 0x13, 0x17, 0x1B, 0x1F, 0x16, 0x1A)


def _part(name: str) -> RegisterSet:
    piece = pieces("arm64")[name]
    assert isinstance(piece, RegisterSet)
    return piece


def _numbered(letter: str, count: int) -> str:
    return " ".join(f"{letter}{number}" for number in range(count))


_CORE = _part("CORE")
CORE = Table(
    "core",
    _CORE,
    RegisterCodec(_CORE),
    [
        Row("PSTATE", f"{_RESET}, VCPU_RESET_PSTATE_EL1; {_SET}", fresh=_EL1H,
            values=Of(_EL1H | _N | _C, _EL1H | _Z | _V, _EL1H | _N | _Z | _C | _V, _EL1H),
            masked=[(_EL1T | _N, _EL1T | _N), (_EL0T | _V, _EL0T | _V), (0x5, 0x5), (_EL1H, _EL1H)],
            refused=[Refusal(0x3C0 | mode, errno.EINVAL) for mode in _NO_MODES]),
        Row("PC", f"{_RESET}; {_SET}", fresh=0, values=Free(ALL), runs=False, kept=Untold("KVM_RUN moves it")),
        Row("SP_EL1 ELR_EL1 SPSR_EL1", f"{_RESET} does not look at them: they are UNKNOWN after a reset", fresh=0,
            values=Free(ALL), init=After.EITHER, runs=Free(0xFFFF_FFF0)),
        Row("SP " + _numbered("X", 31), f"{_RESET}, user_pt_regs; {_SET}", fresh=0, values=Free(ALL)),
        Row("SPSR_ABT SPSR_UND SPSR_IRQ SPSR_FIQ", f"{_RESET}, spsr_abt and following; {_SET}", fresh=0,
            values=Free(ALL), runs=Free(0xFFFF_FFFF)),
    ],
)  # fmt: skip


def _z(vcpu: Vcpu, value: int) -> int:
    return value & (1 << 8 * lengths(vcpu).size) - 1


def _p(vcpu: Vcpu, value: int) -> int:
    return value & (1 << lengths(vcpu).size) - 1


class _Runs:
    """A run of ones from bit 0, which is all that FFR may have. Arm ARM, B1.2.2."""

    rounds = 4

    def value(self, field: str, round: int) -> int:
        """Return the value of a round."""
        return (1 << (5, 15, 256, 0)[round % self.rounds]) - 1


_VECTORS = _part("VECTORS")
_ROWS = [
    Row("FPSR", f"{_RESET}, fp_regs; {_SET}", fresh=0, values=Free(FPSR_BITS)),
    Row("FPCR", f"{_RESET}, fp_regs; {_SET}", fresh=0, values=Free(FPCR_BITS)),
]
VECTORS = Table(
    "vectors",
    _VECTORS,
    RegisterCodec(_VECTORS),
    [
        *_ROWS,
        Row(_numbered("Z", 32), _SVE, fresh=0, values=Free((1 << 2048) - 1), fit=_z),
        Row(_numbered("P", 16), _SVE, fresh=0, values=Free((1 << 256) - 1), fit=_p),
        Row("FFR", _SVE, fresh=0, values=_Runs(), fit=_p),
    ],
)
FPSIMD = Table(
    "fpsimd",
    _VECTORS,
    RegisterCodec(_VECTORS),
    [*_ROWS, Row(_numbered("V", 32), f"{_RESET}, fp_regs; {_SET}", fresh=0, values=Free((1 << 128) - 1))],
)
