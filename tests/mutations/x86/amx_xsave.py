# SPDX-License-Identifier: Apache-2.0
"""Lies about the XSAVE instructions with tiles, armed or not."""

from __future__ import annotations

from tests.mutations.registry import mutation
from tests.mutations.x86.buffers import XSTATE_BV
from tests.mutations.x86.lies import GP, NM, faults, in_tile_guest, lose, tile_byte
from vmm.kvm.ioctl import Interposer


@mutation("amx.xsave-standard")
def xsave_loses_a_byte_of_a_tile() -> Interposer:
    return in_tile_guest("xsave", lambda guest: guest.poke("area", tile_byte(3, 3, 3)))


@mutation("amx.xsave-standard")
def xsaveopt_leaves_the_tile_configuration_out() -> Interposer:
    return in_tile_guest("xsaveopt", lambda guest: guest.poke("area", XSTATE_BV + 2, 2))


@mutation("amx.xsave-compacted")
def xsavec_does_not_say_that_it_compacted() -> Interposer:
    return in_tile_guest("xsavec", lambda guest: guest.poke("area", 527, 0x80))


@mutation("amx.xsave-compacted")
def xsaves_loses_a_byte_of_a_tile() -> Interposer:
    return in_tile_guest("xsaves", lambda guest: guest.poke("area", 576 + 64 + 1024))


@mutation("amx.xsave-compacted")
def xsavec_writes_behind_its_area() -> Interposer:
    return in_tile_guest("xsavec", lambda guest: guest.poke("area", 576 + 64 + 8192))


@mutation("amx.xrstor-restores")
def xrstors_loses_a_byte_of_a_tile() -> Interposer:
    change = lose(1, 2, 3)
    return in_tile_guest("xrstors", lambda guest: change(guest.vcpu))


@mutation("amx.xrstor-restores", "amx.xrstor-initialises")
def xrstorfaults() -> Interposer:
    return in_tile_guest("xrstor", faults(1))


@mutation("amx.xrstor-initialises")
def xrstor_leaves_the_tile_configuration_in_use() -> Interposer:
    return in_tile_guest("xinuse", lambda guest: guest.set("values", 0x20000))


@mutation("amx.xsave-with-xfd")
def xsaveopt_faults_while_armed() -> Interposer:
    return in_tile_guest("xsaveopt", faults(1, NM))


@mutation("amx.xsave-with-xfd")
def xsavec_names_armed_tile_data() -> Interposer:
    return in_tile_guest("xsavec", lambda guest: guest.poke("area", XSTATE_BV + 2, 4))


@mutation("amx.xsave-with-xfd")
def xsaves_leaves_armed_tile_data_out_of_the_layout() -> Interposer:
    return in_tile_guest("xsaves", lambda guest: guest.poke("area", 522, 4))


@mutation("amx.xsave-with-xfd")
def xsave_writes_a_byte_of_an_armed_tile() -> Interposer:
    return in_tile_guest("xsave", lambda guest: guest.poke("area", tile_byte(0, 0, 5)))


@mutation("amx.xrstor-with-xfd")
def xrstor_of_tile_data_works_while_armed() -> Interposer:
    return in_tile_guest("xrstor", faults(0))


@mutation("amx.xrstor-with-xfd")
def xrstors_of_tile_data_is_gp_while_armed() -> Interposer:
    return in_tile_guest("xrstors", lambda guest: guest.set("vector", GP))


@mutation("amx.xrstor-with-xfd")
def xrstor_without_tile_data_faults_while_armed() -> Interposer:
    return in_tile_guest("xrstor", faults(1, NM))
