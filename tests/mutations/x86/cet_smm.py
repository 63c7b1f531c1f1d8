# SPDX-License-Identifier: Apache-2.0
"""Lies about CET over an SMI. Those about RSM with CR0.WP clear need a KVM that passes: none up to Linux 7.3."""

from __future__ import annotations

import errno

from tests.mutations.lies import RUN, Change, Shared, after, answer, assign, nth, once, refuse, toggle
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import set_msr_now
from tests.mutations.x86.lies import get_ssp_now, host_reads, in_cet_guest, set_ssp_now, ssp_reads
from vmm._kvm import lib
from vmm.conformance.x86.smm import SMBASE, SSP_AT
from vmm.kvm.ioctl import Interposer
from vmm.x86.boot import KERNEL_SHADOW_STACK_TOKEN
from vmm.x86.msr_names import Msr

SMI, SREGS = "KVM_SMI", "KVM_GET_SREGS"
# SSP behind the call in the exception handler.
STOPPED_AT = KERNEL_SHADOW_STACK_TOKEN - 8


def _after_smi(name: str, change: Change) -> Interposer:
    return once(SMI, after(name, change))


def _saves(pointer: int, instead_of: int | None = None) -> Interposer:
    """SSP is saved as this whenever the guest has left, or only where something else would be saved."""

    def change(guest: Shared) -> None:
        field = guest.at(SMBASE + SSP_AT)
        if instead_of in (None, field[0]):
            field[0] = pointer

    return in_cet_guest("live", change)


lies(
    "cet.smm-ssp",
    an_smi_does_not_save_ssp=lambda: _saves(0),
    cr4_is_kept_in_smm=lambda: _after_smi(SREGS, toggle("cr4", 1 << 23)),
    an_smi_is_lost=lambda: answer(SMI, 0, nth(1)),
    the_second_smi_is_lost=lambda: answer(SMI, 0, nth(2)),
    rsm_does_not_load_ssp=lambda: _saves(STOPPED_AT, instead_of=STOPPED_AT - 8),
    rsm_loads_ssp_an_entry_off=lambda: once(SMI, once(SMI, _entry_off())),
    rsm_loses_u_cet=lambda: once(SMI, host_reads(Msr.U_CET, lambda value: 0)),
    rsm_loses_s_cet=lambda: once(SMI, host_reads(Msr.S_CET, lambda value: 0)),
    rsm_loses_pl0_ssp=lambda: once(SMI, host_reads(Msr.PL0_SSP, lambda value: 0)),
    rsm_loses_ia32_xss=lambda: once(SMI, host_reads(Msr.XSS, lambda value: 0)),
    smm_turns_supervisor_shadow_stacks_off=lambda: once(
        SMI, after(RUN, lambda call: set_msr_now(call.fd, Msr.S_CET, 0), nth(2))
    ),
    a_return_is_missing=lambda: in_cet_guest("live", lambda guest: guest.set("values", 11)),
    ssp_ends_an_entry_off=lambda: once(SMI, ssp_reads(lambda value: value + 8)),
    rsm_kills_the_vm=lambda: once(SMI, refuse(RUN, errno.EIO, nth(3))),
)


def _entry_off() -> Interposer:
    """Behind the second SMI, in whose handler SSP is still what the first RSM loaded, it is another."""
    return after(RUN, lambda call: set_ssp_now(call.fd, get_ssp_now(call.fd) + 8))


lies(
    "cet.rsm-control-registers",
    rsm_shuts_the_guest_down=lambda: once(SMI, after(RUN, assign("run.exit_reason", lib.KVM_EXIT_SHUTDOWN))),
    rsm_kills_the_vm=lambda: once(SMI, refuse(RUN, errno.EIO)),
    rsm_leaves_write_protection_off=lambda: _after_smi(SREGS, toggle("cr0", 1 << 16)),
    rsm_leaves_cr4_cet_off=lambda: _after_smi(SREGS, toggle("cr4", 1 << 23)),
    a_return_is_missing=lambda: in_cet_guest("live", lambda guest: guest.set("values", 11)),
)
