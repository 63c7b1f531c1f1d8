# SPDX-License-Identifier: Apache-2.0
"""EL1 without a boot loader: an identity mapping and the system registers that go with it.

Guest physical layout, all below the payload at 1 MiB:

    0x1000  level 1: 0 to 1 GiB by level 2, 1 to 2 GiB and 3 to 4 GiB Device, the rest unmapped
    0x2000  level 2: blocks of 2 MiB, Normal write-back memory, as far as the guest has memory

With the MMU off every access would be Device memory, to which vector accesses must be aligned.
"""

from __future__ import annotations

import struct
from functools import cache

from vmm.arm64.registers import PSTATE, SYSTEM
from vmm.arm64.vcpu import write
from vmm.kvm.memory import GuestMemory
from vmm.kvm.vcpu import Vcpu

__all__ = ["CPACR", "EL1H", "TABLES_END", "enter", "write_tables"]

LEVEL_1, LEVEL_2, TABLES_END = 0x1000, 0x2000, 0x3000

EL1H = 0x3C5  # EL1 with its own stack pointer; debug, SError, IRQ and FIQ masked
# RES1 bits, I, SA, C, M. Arm ARM, D23 "SCTLR_EL1".
_SCTLR = 0x30D0180D
# T0SZ 25 (39 bits: tables start at level 1), write-back inner shareable walks, no TTBR1 walks, 4 KiB granule.
_TCR = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23
_MAIR = 0xFF00  # index 0 Device-nGnRnE, index 1 Normal write-back
# SMEN, FPEN and ZEN: neither AdvSIMD nor SVE nor SME traps to EL1, so that a trap is KVM's.
CPACR = 3 << 24 | 3 << 20 | 3 << 16
ZCR = 0xF  # LEN: as long as it gets

_TABLE, _BLOCK = 3, 1
_ACCESSED, _INNER_SHAREABLE, _NORMAL, _NO_EXECUTE = 1 << 10, 3 << 8, 1 << 2, 3 << 53


@cache
def _tables(size: int) -> bytes:
    device = _BLOCK | _ACCESSED | _NO_EXECUTE
    normal = _BLOCK | _ACCESSED | _INNER_SHAREABLE | _NORMAL
    level_1 = struct.pack("<4Q", LEVEL_2 | _TABLE, 1 << 30 | device, 0, 3 << 30 | device)
    level_2 = struct.pack(f"<{size >> 21}Q", *(address | normal for address in range(0, size, 2 << 20)))
    return level_1.ljust(LEVEL_2 - LEVEL_1, b"\0") + level_2


def write_tables(memory: GuestMemory) -> None:
    """Write the tables that map all of ``memory``, which has to start at 0 and end at a multiple of 2 MiB."""
    memory.write(LEVEL_1, _tables(memory.size))


def enter(vcpu: Vcpu, vectors: int) -> None:
    """Put the vCPU into EL1 with the MMU on and its vector table at ``vectors``.

    Tables must have been written; PC and SP are the caller's.
    """
    values = {
        "MAIR_EL1": _MAIR, "TCR_EL1": _TCR, "TTBR0_EL1": LEVEL_1, "VBAR_EL1": vectors,
        "CPACR_EL1": CPACR, "SCTLR_EL1": _SCTLR,
    }  # fmt: skip
    for name, value in values.items():
        write(vcpu, SYSTEM[name], value)
    write(vcpu, PSTATE, EL1H)
