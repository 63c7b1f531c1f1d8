# SPDX-License-Identifier: Apache-2.0
"""Lies about the XSAVE instructions with tiles, armed or not."""

from __future__ import annotations

from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import XSTATE_BV
from tests.mutations.x86.lies import GP, NM, faults, in_tile_guest, lose, tile_byte
from vmm.kvm.ioctl import Interposer

lies(
    "amx.xsave-standard",
    xsave_loses_a_byte_of_a_tile=lambda: in_tile_guest("xsave", lambda guest: guest.poke("area", tile_byte(3, 3, 3))),
    xsaveopt_leaves_the_tile_configuration_out=lambda: in_tile_guest(
        "xsaveopt", lambda guest: guest.poke("area", XSTATE_BV + 2, 2)
    ),
)

lies(
    "amx.xsave-compacted",
    xsavec_does_not_say_that_it_compacted=lambda: in_tile_guest(
        "xsavec", lambda guest: guest.poke("area", 527, 0x80)
    ),
    xsaves_loses_a_byte_of_a_tile=lambda: in_tile_guest("xsaves", lambda guest: guest.poke("area", 576 + 64 + 1024)),
    xsavec_writes_behind_its_area=lambda: in_tile_guest("xsavec", lambda guest: guest.poke("area", 576 + 64 + 8192)),
)


@mutation("amx.xrstor-restores")
def xrstors_loses_a_byte_of_a_tile() -> Interposer:
    change = lose(1, 2, 3)
    return in_tile_guest("xrstors", lambda guest: change(guest.vcpu))


lies("amx.xrstor-restores", "amx.xrstor-initialises", xrstorfaults=lambda: in_tile_guest("xrstor", faults(1)))

lies(
    "amx.xrstor-initialises",
    xrstor_leaves_the_tile_configuration_in_use=lambda: in_tile_guest(
        "xinuse", lambda guest: guest.set("values", 0x20000)
    ),
)

lies(
    "amx.xsave-with-xfd",
    xsaveopt_faults_while_armed=lambda: in_tile_guest("xsaveopt", faults(1, NM)),
    xsavec_names_armed_tile_data=lambda: in_tile_guest("xsavec", lambda guest: guest.poke("area", XSTATE_BV + 2, 4)),
    xsaves_leaves_armed_tile_data_out_of_the_layout=lambda: in_tile_guest(
        "xsaves", lambda guest: guest.poke("area", 522, 4)
    ),
    xsave_writes_a_byte_of_an_armed_tile=lambda: in_tile_guest(
        "xsave", lambda guest: guest.poke("area", tile_byte(0, 0, 5))
    ),
)

lies(
    "amx.xrstor-with-xfd",
    xrstor_of_tile_data_works_while_armed=lambda: in_tile_guest("xrstor", faults(0)),
    xrstors_of_tile_data_is_gp_while_armed=lambda: in_tile_guest("xrstors", lambda guest: guest.set("vector", GP)),
    xrstor_without_tile_data_faults_while_armed=lambda: in_tile_guest("xrstor", faults(1, NM)),
)
