# SPDX-License-Identifier: Apache-2.0
"""Lies about SMM and RSM: a field of each piece is lost, SMM begins with something else, or RSM does not restore."""

from __future__ import annotations

import errno
from functools import partial

from tests.mutations.lies import RUN, after, assign, nth, once, refuse, succeed_with, toggle
from tests.mutations.registry import lies
from tests.mutations.world import way_lies
from tests.mutations.x86.lies import A_FIELD
from vmm._kvm import lib

SMI, REGS, SREGS, EVENTS = "KVM_SMI", "KVM_GET_REGS", "KVM_GET_SREGS2", "KVM_GET_VCPU_EVENTS"
_CLAUSES = ("world.way-smm", "world.way-smm-32")

for _clause in _CLAUSES:
    way_lies(__name__, _clause, partial(once, SMI), A_FIELD)

lies(
    *_CLAUSES,
    an_smi_is_refused=lambda: refuse(SMI, errno.ENOTTY),
    the_handler_leaves_in_another_way=lambda: once(SMI, succeed_with(RUN, lambda call, result: lib.VMM_RUN_EXIT)),
    cs_has_another_limit_in_smm=lambda: once(SMI, after(SREGS, assign("cs.limit", 0xFFFF), nth(1))),
    ss_keeps_its_type_in_smm=lambda: once(SMI, after(SREGS, assign("ss.type", 7), nth(1))),
    the_idt_stays_in_smm=lambda: once(SMI, after(SREGS, assign("idt.base", 0x1000), nth(1))),
    the_gdt_is_lost_in_smm=lambda: once(SMI, after(SREGS, assign("gdt.base", 0), nth(1))),
    dr7_stays_in_smm=lambda: once(SMI, after("KVM_GET_DEBUGREGS", assign("dr7", 0x700), nth(1))),
    nmis_are_not_masked_in_smm=lambda: once(SMI, after(EVENTS, assign("nmi.masked", 0), nth(1))),
    smm_is_not_shown=lambda: once(SMI, after(EVENTS, assign("smi.smm", 0), nth(1))),
    rsm_loses_dr7=lambda: once(SMI, after("KVM_GET_DEBUGREGS", assign("dr7", 0x500), nth(2))),
    rsm_loses_the_base_of_tr=lambda: once(SMI, after(SREGS, toggle("tr.base", 0x1000), nth(2))),
    rsm_loses_the_high_half_of_r15=lambda: once(SMI, after(REGS, toggle("r15", 1 << 40), nth(2))),
    rsm_leaves_nmis_masked=lambda: once(SMI, after(EVENTS, toggle("nmi.masked", 1), nth(2))),
    smm_has_no_end=lambda: once(SMI, after(EVENTS, assign("smi.smm", 1), nth(2))),
)
