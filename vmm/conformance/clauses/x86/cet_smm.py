# SPDX-License-Identifier: Apache-2.0
"""CET over an SMI: SSP goes through SMRAM, and RSM sets control registers that belong together."""

from __future__ import annotations

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, succeeds
from vmm.conformance.registry import clause
from vmm.conformance.x86 import smm
from vmm.conformance.x86.shadow import DEPTH, SHSTK, XSAVES, goes_on, ssp, stopped_inside
from vmm.conformance.x86.smm import RSM, SMBASE, SMM, SSP_AT, give_smram, run_to_tick, stop_in_handler, tick
from vmm.kvm.exits import IoOut
from vmm.x86 import boot
from vmm.x86.guest import DONE, Guest
from vmm.x86.msr import get_msr, name
from vmm.x86.msr_names import Msr
from vmm.x86.registers import get_sregs

_KEPT = (Msr.U_CET, Msr.S_CET, Msr.PL0_SSP, Msr.PL3_SSP, Msr.XSS)
# CR0.WP = 0 and RSM: mov %cr0, %eax; and $~0x10000, %eax; mov %eax, %cr0; rsm.
_WITHOUT_WP = bytes.fromhex("0f20c0 6625fffffeff 0f22c0") + RSM


@clause("cet.smm-ssp", arch="x86", needs=(SHSTK, XSAVES, SMM))
def pointer_in_smram(context: Context) -> None:
    """An SMI saves SSP in SMRAM, RSM loads it from there, and the other CET registers keep their values over both.

    Source: arch/x86/kvm/smm.c, enter_smm_save_state_64, rsm_load_state_64; AMD APM volume 2, table 10-1 (SSP); Linux
    6.18.
    """
    guest = stopped_inside(context)
    give_smram(guest, tick(guest) + RSM)
    before = {register: get_msr(guest.vcpu, register) for register in _KEPT}
    pointer = ssp(guest.vcpu)
    stop_in_handler(context, guest)
    equal("SSP saved", smm.saved(guest, SSP_AT), pointer)
    equal("CR4 in SMM", get_sregs(guest.vcpu).cr4, 0)
    # RSM returns to an XRSTORS and what needs each register; two SMIs before it, the first with another SSP.
    _set_saved(guest, pointer - 8)
    smm.send_smi(guest.vcpu)
    run_to_tick(context, guest, "the SMI handler behind RSM")
    equal("SSP saved after it was changed in SMRAM", smm.saved(guest, SSP_AT), pointer - 8)
    _set_saved(guest, pointer)
    goes_on(context, guest, "the guest behind RSM")
    equal("returns of the guest", guest.mailbox.values[0], DEPTH)
    equal("SSP at the end", ssp(guest.vcpu), boot.USER_SHADOW_STACK_TOP)
    for register, value in before.items():
        if register != Msr.PL3_SSP:  # which IRET to CPL 3 has loaded
            equal(f"{name(register)} behind RSM", get_msr(guest.vcpu, register), value)


def _set_saved(guest: Guest, pointer: int) -> None:
    guest.memory.write(SMBASE + SSP_AT, pointer.to_bytes(8, "little"))


@clause("cet.rsm-control-registers", arch="x86", needs=(SHSTK, XSAVES, SMM))
def control_registers_together(context: Context) -> None:
    """RSM brings a guest with CR4.CET back whatever CR0 the handler left, even one with WP clear.

    Those of the save area are legal together, and RSM shuts down only on a save area that is not.

    Source: Intel SDM volume 3, "Exiting From SMM"; arch/x86/kvm/smm.c, rsm_enter_protected_mode; Linux 6.18.
    """
    guest = stopped_inside(context)
    give_smram(guest, RSM)
    smm.send_smi(guest.vcpu)
    done = IoOut(guest.payload.symbol("EVENT_PORT_NUMBER"), 4, DONE)
    guest.memory.write(SMBASE + smm.HANDLER, _WITHOUT_WP)
    equal("the exit behind RSM with CR0.WP 0", succeeds("the run", guest.resume, context.timeout), done)
    guest.vcpu.complete()
    sregs = get_sregs(guest.vcpu)
    equal("CR0 behind RSM", sregs.cr0, boot.CR0)
    equal("CR4.CET behind RSM", sregs.cr4 & boot.CR4_CET, boot.CR4_CET)
    equal("returns of the guest", guest.mailbox.values[0], DEPTH)
