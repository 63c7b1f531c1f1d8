# SPDX-License-Identifier: Apache-2.0
"""KVM_ARM_VCPU_INIT of a vCPU that has been in use: what becomes as it was at first."""

from __future__ import annotations

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import FPCR, FPSR, Group, Register, core, v, x
from vmm.arm64.vcpu import Feature, read, write
from vmm.conformance.arm64.baseline import BASELINE
from vmm.conformance.arm64.common import GUEST_RUNS, call, plain_guest, plain_vcpu
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, succeeds, true
from vmm.conformance.registry import clause
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vcpu import Vcpu

# What KVM leaves as it is: who the CPU is (op0 3, CRn 0), the timer's comparator and counters (CRn 14, CRm 0 to 3),
# and three registers that a reset leaves UNKNOWN.
_LEFT = frozenset(map(core, ("SP_EL1", "ELR_EL1", "SPSR_EL1")))


def _begins_anew(register: Register) -> bool:
    if register.group != Group.SYSREG:
        return register.group == Group.CORE and register not in _LEFT
    op0, op1, crn, _, _ = register.encoding
    identity = op0 == 3 and crn == 0 and op1 != 2
    return not identity and (op1, crn) != (3, 14)


def _registers() -> list[Register]:
    """The registers that every kernel lists and VCPU_INIT gives their first value, with V0 to V31."""
    return sorted({register for register in BASELINE["5.10"] if _begins_anew(register)} | {v(n) for n in range(32)})


def _spoil(vcpu: Vcpu, register: Register, value: bytes) -> bool:
    """Give a register another value; False where it takes none of those that are tried."""
    flag = bytes([*value[:3], value[3] ^ 0x80, *value[4:]])  # PSTATE's N
    for new in (bytes(byte ^ 0xFF for byte in value), bytes([value[0] ^ 8, *value[1:]]), flag):
        try:
            vcpu.set_one_reg(register, new)
        except KvmError:
            continue
        if vcpu.get_one_reg(register) != value:
            return True
    return False


@clause("init.again-resets", arch="arm64")
def again_resets(context: Context) -> None:
    """VCPU_INIT again gives core, vector and system registers the values that they had after the first one.

    Identities, the timer's comparator, and SP_EL1, ELR_EL1 and SPSR_EL1, which are UNKNOWN after a reset, may stay.

    Source: Documentation/virt/kvm/api.rst, 4.82; arch/arm64/kvm/reset.c, kvm_reset_vcpu; arch/arm64/kvm/sys_regs.c.
    """
    vcpu = plain_vcpu(context)
    first = {register: vcpu.get_one_reg(register) for register in _registers()}
    changed = [register for register, value in first.items() if _spoil(vcpu, register, value)]
    true("registers that took another value", len(changed) > 100, len(changed), "more than 100")
    succeeds("VCPU_INIT", vcpus.init, vcpu)
    for register in changed:
        equal(f"{register} after VCPU_INIT", vcpu.get_one_reg(register), first[register])
    kept = [str(register) for register in _LEFT if _spoiled_stays(vcpu, register)]
    context.note(f"as they were before VCPU_INIT: {', '.join(sorted(kept)) or 'none of those that may be'}")


def _spoiled_stays(vcpu: Vcpu, register: Register) -> bool:
    write(vcpu, register, 0x80000000)
    vcpus.init(vcpu)
    return read(vcpu, register) == 0x80000000


@clause("init.again-after-run", arch="arm64", needs=(GUEST_RUNS,))
def again_after_run(context: Context) -> None:
    """VCPU_INIT takes what a guest left in V0 to V31, FPSR, FPCR and X0 to X30, and the guest may start over.

    Source: Documentation/virt/kvm/api.rst, 4.82; arch/arm64/kvm/reset.c, kvm_reset_vcpu (fp_regs).
    """
    guest = plain_guest(context, "fpsimd")
    image = bytes(byte | 1 for byte in range(256)) * 35
    guest.memory.write(guest.payload.symbol("image"), image[: guest.payload.symbol("AREA_BYTES")])
    call(context, guest, "a guest that loads its registers", "load")
    vectors = [v(number) for number in range(32)]
    true("V0 as the guest left it", read(guest.vcpu, v(0)) != 0, 0, "what it loaded")
    succeeds("VCPU_INIT", vcpus.init, guest.vcpu, Feature.PSCI_0_2)
    for register in (*vectors, FPSR, FPCR, *(x(number) for number in range(31))):
        equal(f"{register} after VCPU_INIT", read(guest.vcpu, register), 0)
    guest.memory.write(guest.payload.symbol("image"), bytes(guest.payload.symbol("AREA_BYTES")))
    event = call(context, guest, "the guest that starts over", "verify")
    equal("what the guest finds in its vector registers, compared with 0", event, guest.DONE)
