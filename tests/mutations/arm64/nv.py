# SPDX-License-Identifier: Apache-2.0
"""Lies about vCPUs with EL2."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.mutations.arm64.lies import (
    INIT,
    SET,
    change_list,
    forget,
    guest_left,
    list_without,
    of,
    reading,
    values,
)  # fmt: skip
from tests.mutations.lies import Condition, Shared, accept, drift, given, nth, refuse
from tests.mutations.registry import lies
from vmm.arm64.registers import SYSTEM
from vmm.arm64.vcpu import Feature
from vmm.conformance.arm64.nested import EL2_REGISTERS
from vmm.kvm.ioctl import Interposer

GET = "KVM_GET_ONE_REG"
_ZCR_EL2 = SYSTEM["ZCR_EL2"]
_VBAR, _SP, _ESR = (EL2_REGISTERS[name][0] for name in ("VBAR_EL2", "SP_EL2", "ESR_EL2"))
_OPEN = 3 << 20 | 3 << 16


def _with(*features: Feature, turn: int = 0) -> Condition:
    """Met by KVM_ARM_VCPU_INIT with exactly these features."""
    bits = sum(1 << feature for feature in features)
    which = nth(turn) if turn else lambda call: True
    return lambda call: call.argument.features[0] == bits and which(call)


def _pfr0(shift: int) -> Callable[[memoryview], None]:
    """A field of ID_AA64PFR0_EL1 becomes 2: AArch32 too."""

    def spoil(view: memoryview) -> None:
        value = int.from_bytes(view, "little") & ~(0xF << shift) | 2 << shift
        view[:] = value.to_bytes(8, "little")

    return spoil


lies(
    "nv.absent",
    a_vcpu_has_el2_all_the_same=lambda: accept(INIT, _with(Feature.HAS_EL2)),
    a_vcpu_has_el2_without_vhe=lambda: accept(INIT, _with(Feature.HAS_EL2, Feature.HAS_EL2_E2H0)),
    a_vcpu_with_el2_is_eperm=lambda: drift(INIT, errno.EPERM, _with(Feature.HAS_EL2)),
    the_vcpu_without_is_refused=lambda: refuse(INIT, errno.EINVAL, _with()),
    registers_of_el2_are_listed=lambda: change_list(lambda found: [*found[:-1], _VBAR]),
)

lies(
    "nv.features",
    el2_has_aarch32=lambda: accept(INIT, _with(Feature.HAS_EL2, Feature.EL1_32BIT)),
    el2_of_aarch32_is_enoent=lambda: drift(INIT, errno.ENOENT, _with(Feature.HAS_EL2, Feature.EL1_32BIT)),
    el2_is_refused=lambda: refuse(INIT, errno.EINVAL, _with(Feature.HAS_EL2)),
    el1_may_be_aarch32=lambda: reading(_pfr0(4), SYSTEM["ID_AA64PFR0_EL1"]),
    el2_may_be_aarch32=lambda: reading(_pfr0(8), SYSTEM["ID_AA64PFR0_EL1"]),
)

lies(
    "nv.registers",
    vbar_el2_is_not_listed=lambda: list_without(_VBAR),
    sp_el2_is_not_listed=lambda: list_without(_SP),
    esr_el2_is_listed_without_el2=lambda: change_list(lambda found: [*found[:-1], _ESR]),
    vbar_el2_cannot_be_written=lambda: refuse(SET, errno.EINVAL, of(_VBAR)),
    sp_el2_can_be_read_without_el2=lambda: accept(GET, of(_SP)),
    **{f"{name.lower()}_is_not_kept": lambda register=register: forget(register)
       for name, (register, _) in EL2_REGISTERS.items()},
)  # fmt: skip

lies(
    "nv.zcr_el2-visibility",
    zcr_el2_is_not_listed=lambda: list_without(_ZCR_EL2, 1),
    zcr_el2_is_listed_with_one_of_them=lambda: _listed_later(),
    zcr_el2_cannot_be_written=lambda: refuse(SET, errno.EINVAL, lambda call: of(_ZCR_EL2)(call)),
    zcr_el2_is_not_kept=lambda: forget(_ZCR_EL2),
    zcr_el2_can_be_read_with_one_of_them=lambda: accept(GET, of(_ZCR_EL2)),
    zcr_el2_can_be_written_with_one_of_them=lambda: accept(SET, of(_ZCR_EL2)),
)


def _listed_later() -> Interposer:
    calls = 0

    def change(found: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        return [*found[:-1], _ZCR_EL2] if calls > 1 else found

    return change_list(change)


def _spoiled(entry: str, change: Callable[[Shared], object], *parameters: int) -> Interposer:
    return guest_left(entry, change, payload="nested", when=given(*parameters) if parameters else None)


def _syndrome(number: int) -> Callable[[Shared], None]:
    return values(1, lambda old: number << 26)


lies(
    "nv.l1-caps-l2-vl",
    l1_does_not_cap_l2=lambda: _spoiled("rdvl", values(0, lambda old: 64), 0, 15),
    l2_does_not_choose=lambda: _spoiled("rdvl", values(0, lambda old: 64), 3, 0),
    l2_has_the_shortest_vectors=lambda: _spoiled("rdvl", values(0, lambda old: 16)),
    l2_leaves_in_another_way=lambda: _spoiled("rdvl", _syndrome(0x19)),
)

lies(
    "nv.l1-traps-vectors",
    sve_of_l2_is_not_trapped=lambda: _spoiled("sve", _syndrome(0x16), 15, 15, _OPEN & ~(3 << 16)),
    advsimd_of_l2_is_not_trapped=lambda: _spoiled("neon", _syndrome(0x16), 15, 15, _OPEN & ~(3 << 20)),
    sve_of_l2_is_undefined=lambda: _spoiled("sve", _syndrome(0), 15, 15, _OPEN & ~(3 << 16)),
    a_trap_comes_late=lambda: _spoiled("sve", values(2, lambda old: old + 4), 15, 15, _OPEN & ~(3 << 16)),
    sve_of_l2_is_always_trapped=lambda: _spoiled("sve", _syndrome(0x19), 15, 15, _OPEN),
    advsimd_of_l2_is_executed_twice=lambda: _spoiled("neon", values(2, lambda old: old - 4), 15, 15, _OPEN),
)

lies(
    "nv.l1l2-fp-kept",
    l2_has_another_v31=lambda: _spoiled("keep_neon", lambda guest: guest.poke("second", 31 * 256 + 15)),
    l1_has_another_v0=lambda: _spoiled("keep_neon", lambda guest: guest.poke("first", 0)),
    l2_has_another_z7=lambda: _spoiled("keep_sve", lambda guest: guest.poke("second", 7 * 256 + 63)),
    l1_has_another_z30=lambda: _spoiled("keep_sve", lambda guest: guest.poke("first", 30 * 256 + 33)),
)
