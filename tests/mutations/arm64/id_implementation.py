# SPDX-License-Identifier: Apache-2.0
"""Lies about which CPU a guest has, and about its caches."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import SET, executed, flip, forget, get_now, of, reading, value, values
from tests.mutations.lies import RUN, Proceed, accept, once, refuse
from tests.mutations.registry import lies, mutation
from vmm.arm64.registers import SYSTEM, Register, cache
from vmm.conformance.arm64.instructions import mrs
from vmm.kvm.ioctl import Call, Interposer

_MIDR, _AIDR, _CLIDR = SYSTEM["MIDR_EL1"], SYSTEM["AIDR_EL1"], SYSTEM["CLIDR_EL1"]
_ENABLE = "KVM_ENABLE_CAP"
_CACHES = tuple(cache(number) for number in range(14))
_MRS_CCSIDR = mrs(3, 1, 0, 0, 0)


def _shared(*registers: Register) -> Interposer:
    """What is written to one vCPU is read from the others."""
    written: dict[int, bytes] = {}

    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        if call.name == SET and of(*registers)(call) and result >= 0:
            written[int(call.argument.id)] = bytes(value(call))
        elif call.name == "KVM_GET_ONE_REG" and int(call.argument.id) in written:
            value(call)[:] = written[int(call.argument.id)]
        return result

    return interposer


lies(
    "id.implementation-writable",
    another_midr_el1_is_refused=lambda: refuse(SET, errno.EINVAL, of(_MIDR)),
    another_aidr_el1_is_not_kept=lambda: forget(_AIDR),
    midr_el1_takes_64_bits=lambda: accept(SET, of(_MIDR)),
    the_guest_reads_the_hosts_midr_el1=lambda: executed(mrs(*_MIDR.encoding), values(0, lambda old: old ^ 0x10)),
    aidr_el1_is_undefined_for_the_guest=lambda: executed(mrs(*_AIDR.encoding), values(15, lambda old: 1)),
    the_identity_can_be_changed_after_a_run=lambda: once(RUN, accept(SET, of(_AIDR))),
    its_own_identity_is_refused_after_a_run=lambda: once(RUN, refuse(SET, errno.EBUSY, of(_MIDR))),
    a_refused_identity_has_an_effect=lambda: once(RUN, once(SET, reading(flip(0), _AIDR), refused=True)),
)


@mutation("id.implementation-writable")
def the_identity_is_each_vcpus_own() -> Interposer:
    first: dict[int, tuple[int, bytes]] = {}

    def interposer(call: Call, proceed: Proceed) -> int:
        register = int(call.argument.id) if call.name in (SET, "KVM_GET_ONE_REG") else 0
        if call.name == SET and register == _MIDR and register not in first:
            first[register] = call.fd, get_now(call.fd, _MIDR)
        result = proceed()
        if call.name != SET and register in first and call.fd != first[register][0]:
            value(call)[:] = first[register][1]
        return result

    return interposer


lies(
    "id.implementation-needs-enabling",
    it_cannot_be_enabled=lambda: refuse(_ENABLE, errno.EINVAL),
    it_can_be_enabled_with_a_vcpu=lambda: accept(_ENABLE),
    another_midr_el1_is_accepted_without_it=lambda: accept(SET, of(_MIDR)),
    a_refused_identity_has_an_effect=lambda: once(SET, reading(flip(0), _MIDR), refused=True),
)

lies(
    "id.clidr-writable",
    a_reserved_bit_is_accepted=lambda: accept(SET, of(_CLIDR)),
    another_clidr_el1_is_refused=lambda: refuse(SET, errno.EINVAL, of(_CLIDR)),
    a_refused_clidr_el1_has_an_effect=lambda: once(SET, reading(flip(0), _CLIDR), refused=True),
    the_guest_reads_the_hosts_clidr_el1=lambda: executed(mrs(*_CLIDR.encoding), values(0, lambda old: old ^ 1 << 30)),
    clidr_el1_is_undefined_for_the_guest=lambda: executed(mrs(*_CLIDR.encoding), values(15, lambda old: 1)),
    clidr_el1_is_that_of_all_vcpus=lambda: _shared(_CLIDR),
)

lies(
    "id.ccsidr-by-level",
    lines_may_be_shorter_than_the_hosts=lambda: accept(SET, of(*_CACHES)),
    the_last_cache_takes_no_other_geometry=lambda: refuse(SET, errno.EINVAL, of(_CACHES[13])),
    a_refused_geometry_has_an_effect=lambda: once(SET, reading(flip(2), _CACHES[3]), refused=True),
    the_guest_reads_another_geometry=lambda: executed(_MRS_CCSIDR, values(0, lambda old: old ^ 1 << 13)),
    the_caches_are_those_of_all_vcpus=lambda: _shared(*_CACHES),
)
