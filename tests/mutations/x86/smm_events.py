# SPDX-License-Identifier: Apache-2.0
"""Lies about SMM in the vCPU events."""

from __future__ import annotations

import errno

from tests.mutations.lies import RUN, Change, after, answer, assign, before, nth, once, refuse, succeed_with, toggle
from tests.mutations.registry import lies
from vmm._kvm import lib
from vmm.kvm.ioctl import Interposer

SMI, GET, SET, REGS, MSI = "KVM_SMI", "KVM_GET_VCPU_EVENTS", "KVM_SET_VCPU_EVENTS", "KVM_GET_REGS", "KVM_SIGNAL_MSI"
SREGS = "KVM_GET_SREGS"


def _reads(number: int, field: str, value: int) -> Interposer:
    """The ``number``-th KVM_GET_VCPU_EVENTS shows another value."""
    return after(GET, assign(field, value), nth(number))


def _after_smi(name: str, change: Change, number: int = 0) -> Interposer:
    return once(SMI, after(name, change, nth(number)) if number else after(name, change))


lies(
    "smm.pending",
    an_smi_is_refused=lambda: refuse(SMI, errno.ENOTTY),
    a_fresh_vcpu_has_an_smi_pending=lambda: _reads(1, "smi.pending", 1),
    an_smi_that_was_sent_is_not_pending=lambda: answer(SMI, 0),
    an_smi_that_was_sent_is_smm_already=lambda: _reads(2, "smi.smm", 1),
    an_smi_cannot_be_given_to_another_vcpu=lambda: answer(SET, 0, nth(1)),
    giving_an_smi_is_refused=lambda: refuse(SET, errno.EINVAL, nth(1)),
    a_pending_smi_cannot_be_cleared=lambda: answer(SET, 0, nth(2)),
    clearing_a_pending_smi_is_refused=lambda: refuse(SET, errno.EINVAL, nth(2)),
    an_smi_that_was_cleared_is_taken=lambda: before(SET, assign("smi.smm", 1), nth(2)),
    the_vcpu_that_was_given_an_smi_does_not_take_it=lambda: once(RUN, after(GET, assign("smi.smm", 0))),
    the_vcpu_that_was_given_an_smi_runs_another_handler=lambda: once(RUN, after(REGS, toggle("rip", 0x8000), nth(2))),
    the_vcpu_whose_smi_was_cleared_does_not_run=lambda: refuse(RUN, errno.EIO, nth(1)),
    the_vcpu_that_was_given_an_smi_does_not_run=lambda: refuse(RUN, errno.EIO, nth(2)),
)

lies(
    "smm.blocks-nmi",
    an_smi_is_lost=lambda: answer(SMI, 0),
    nmis_cannot_be_masked_by_the_host=lambda: before(SET, assign("nmi.masked", 0)),
    smm_does_not_mask_nmis=lambda: _after_smi(GET, assign("nmi.masked", 0), 1),
    smm_is_always_inside_an_nmi=lambda: _after_smi(GET, assign("smi.smm_inside_nmi", 1), 1),
    smm_is_never_inside_an_nmi=lambda: after(GET, assign("smi.smm_inside_nmi", 0)),
    rsm_leaves_nmis_masked=lambda: _after_smi(GET, assign("nmi.masked", 1)),
    # The handler's are the first, behind RSM come two; the second guest is asked twice before its SMI.
    rsm_unmasks_nmis_that_were_masked_before=lambda: _after_smi(GET, assign("nmi.masked", 0), 8),
    rsm_leaves_the_vcpu_in_smm=lambda: _after_smi(GET, assign("smi.smm", 1), 3),
    the_guest_does_not_come_back=lambda: refuse(RUN, errno.EIO, nth(2)),
)

lies(
    "smm.moves",
    smm_is_not_restored=lambda: once(SMI, before(SET, assign("smi.smm", 0))),
    smm_cannot_be_restored=lambda: once(SMI, refuse(SET, errno.EINVAL)),
    the_nmi_around_is_not_restored=lambda: once(SMI, before(SET, assign("smi.smm_inside_nmi", 0))),
    the_mask_of_nmis_is_not_restored=lambda: once(SMI, before(SET, assign("nmi.masked", 0))),
    the_copy_does_not_run=lambda: refuse(RUN, errno.EIO, nth(2)),
    the_copy_is_in_smm_behind_rsm=lambda: _after_smi(GET, assign("smi.smm", 1)),
    the_copy_unmasks_nmis=lambda: _after_smi(GET, assign("nmi.masked", 0), 3),
    the_copy_has_no_paging_behind_rsm=lambda: _after_smi(SREGS, toggle("cr0", 1 << 31), 2),
)

lies(
    "smm.rsm-outside",
    the_vcpu_is_restored_into_smm_all_the_same=lambda: once(SMI, before(SET, assign("smi.smm", 1))),
    smm_is_shown_all_the_same=lambda: _after_smi(GET, assign("smi.smm", 1)),
    the_events_cannot_be_restored=lambda: once(SMI, refuse(SET, errno.EINVAL)),
    rsm_outside_of_smm_leaves_in_another_way=lambda: succeed_with(RUN, lambda call, result: lib.VMM_RUN_EXIT, nth(2)),
    rsm_outside_of_smm_kills_the_vm=lambda: refuse(RUN, errno.EIO, nth(2)),
    rsm_outside_of_smm_is_skipped=lambda: _after_smi(REGS, assign("rip", 0x8004)),
)

lies(
    "smm.latched-init",
    init_is_not_latched=lambda: answer(MSI, 1),
    the_latch_is_not_shown=lambda: once(MSI, after(GET, assign("smi.latched_init", 0))),
    the_latch_cannot_be_cleared=lambda: once(MSI, before(SET, assign("smi.latched_init", 1))),
    the_latch_cannot_be_set=lambda: once(MSI, answer(SET, 0, nth(2))),
    clearing_the_latch_is_refused=lambda: once(MSI, refuse(SET, errno.EINVAL)),
    init_ends_smm=lambda: once(MSI, after(GET, assign("smi.smm", 0))),
    init_is_taken_in_smm=lambda: once(
        MSI, after("KVM_GET_MP_STATE", assign("mp_state", lib.KVM_MP_STATE_INIT_RECEIVED))
    ),
)
