# SPDX-License-Identifier: Apache-2.0
"""FPMR, the mode register of FP8: whether this process has it, and whether a guest does.

Source: Arm ARM, D23 "FPMR", "ID_AA64PFR2_EL1"; Documentation/arch/arm64/elf_hwcaps.rst.
"""

from __future__ import annotations

from vmm.conformance.needs import Need
from vmm.probe.host import Host

__all__ = ["ENCODING", "HOST_FPMR", "VALUES"]

ENCODING = (3, 3, 4, 4, 2)
# NSCALE, LSCALE, OSM and F8S1 with bits that every implementation keeps.
VALUES = (0xAA55_4001, 0x5522_0000, 0)
_HWCAP2_FPMR = 1 << 48


def _host(host: Host) -> tuple[bool, str]:
    return bool(host.facts.hwcap2 & _HWCAP2_FPMR), f"HWCAP2 is {host.facts.hwcap2:#x}, without bit 48"


HOST_FPMR = Need("FPMR for this process (HWCAP2_FPMR)", _host)
