# SPDX-License-Identifier: Apache-2.0
"""KVM_REG_ARM64_SVE_VLS: the set of vector lengths of a vCPU."""

from __future__ import annotations

import errno

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import VLS, Register
from vmm.arm64.vcpu import Feature
from vmm.arm64.vls import ARCHITECTURAL_MAX, MAX, QUADWORD, VectorLengths
from vmm.conformance.arm64.common import (
    GUEST_RUNS,
    HOLE,
    OWN_SVE,
    SEVERAL,
    SVE,
    call,
    enter,
    lengths,
    lengths_to_try,
    plain_vcpu,
    poisoned_get,
    set_bad,
    sve_guest,
    sve_vcpu,
)
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused_indicative, succeeds, true
from vmm.conformance.registry import clause
from vmm.kvm.vcpu import Vcpu
from vmm.probe.arm64.facts import host_lengths

_VLS_BYTES = 64


def _refuse(context: Context, vcpu: Vcpu, wanted: VectorLengths) -> None:
    """KVM has to refuse a set and to keep the vCPU as it was."""
    kept = vcpus.get_vls(vcpu)
    refused_indicative(context, f"vector lengths {wanted}", errno.EINVAL, vcpus.set_vls, vcpu, wanted)
    equal(f"vector lengths after the refused {wanted}", vcpus.get_vls(vcpu), kept)


@clause("sve.vls.encoding", arch="arm64", needs=(SVE,))
def encoding(context: Context) -> None:
    """Bit vq - 1 stands for vectors of vq times 128 bits; 128 bits are always there, more than 2048 never.

    All 64 bytes are written, and none beyond them.

    Source: Documentation/virt/kvm/api.rst, 4.68; arch/arm64/kvm/guest.c, get_sve_vls.
    """
    vcpu = sve_vcpu(context, finalized=False)
    for poison in (0xAA, 0x55):
        data = poisoned_get(vcpu, VLS, 2 * _VLS_BYTES, poison)
        equal("what lies beyond the register", data[_VLS_BYTES:], bytes([poison]) * _VLS_BYTES)
        found = VectorLengths.decode(data[:_VLS_BYTES])
        true("vector lengths", 1 in found, found, "1 among them")
        true("the largest", found.maximum <= ARCHITECTURAL_MAX, found.maximum, f"at most {ARCHITECTURAL_MAX}")
    equal("vector lengths measured earlier", found, lengths(context))


@clause("sve.vls.initial-equals-host-probe", arch="arm64", needs=(SVE, OWN_SVE))
def initial(context: Context) -> None:
    """A vCPU starts with the lengths that a process of the host can have, up to the largest that all CPUs share.

    Longer ones of the host are a note: KVM gives them to no guest on a machine whose CPUs differ.

    Source: arch/arm64/kvm/reset.c, kvm_arm_init_sve; arch/arm64/kernel/fpsimd.c, sve_set_vector_length.
    """
    found = vcpus.get_vls(sve_vcpu(context, finalized=False))
    own = host_lengths()
    equal("vector lengths against prctl(PR_SVE_SET_VL)", found, own.up_to(found.maximum))
    if own.maximum > found.maximum:
        context.note(f"the host itself has {own}: its CPUs differ")


@clause("sve.vls.prefix-ok", arch="arm64", needs=(SVE,))
def prefix(context: Context) -> None:
    """Every set of all lengths up to one that is available is accepted, and is what the finalized vCPU has.

    Source: arch/arm64/kvm/guest.c, set_sve_vls.
    """
    for wanted in lengths_to_try(context):
        vcpu = sve_vcpu(context, finalized=False)
        succeeds(f"vector lengths {wanted}", vcpus.set_vls, vcpu, wanted)
        equal("before FINALIZE", vcpus.get_vls(vcpu), wanted)
        succeeds(f"FINALIZE with {wanted}", vcpus.finalize, vcpu)
        equal("after FINALIZE", vcpus.get_vls(vcpu), wanted)


@clause("sve.vls.empty-einval", arch="arm64", needs=(SVE,))
def empty(context: Context) -> None:
    """A vCPU without any vector length is refused.

    Source: arch/arm64/kvm/guest.c, set_sve_vls.
    """
    _refuse(context, sve_vcpu(context, finalized=False), VectorLengths())


@clause("sve.vls.gap-einval", arch="arm64", needs=(SVE, SEVERAL))
def gap(context: Context) -> None:
    """A set that leaves out an available length below its largest is refused: hardware can only cap.

    Source: arch/arm64/kvm/guest.c, set_sve_vls (ZCR_EL2.LEN); Documentation/virt/kvm/api.rst, 4.68.
    """
    full = lengths(context)
    vcpu = sve_vcpu(context, finalized=False)
    for missing in sorted(full - {full.maximum}):
        _refuse(context, vcpu, VectorLengths(full - {missing}))


@clause("sve.vls.unsupported-vq-einval", arch="arm64", needs=(SVE, HOLE))
def unsupported(context: Context) -> None:
    """A set with a length that the CPU lacks, below its largest, is refused.

    Source: arch/arm64/kvm/guest.c, set_sve_vls.
    """
    full = lengths(context)
    vcpu = sve_vcpu(context, finalized=False)
    for extra in sorted(set(range(1, full.maximum)) - full):
        _refuse(context, vcpu, VectorLengths(full | {extra}))


@clause("sve.vls.above-max-einval", arch="arm64", needs=(SVE,))
def above(context: Context) -> None:
    """A set with a length above the host's largest is refused, up to the last bit of the register.

    Source: arch/arm64/kvm/guest.c, set_sve_vls (kvm_sve_max_vl).
    """
    full = lengths(context)
    vcpu = sve_vcpu(context, finalized=False)
    for extra in sorted({full.maximum + 1, ARCHITECTURAL_MAX + 1, 64, 65, 128, 129, 257, MAX}):
        if extra > full.maximum:
            _refuse(context, vcpu, VectorLengths(full | {extra}))


@clause("sve.vls.failed-write-no-effect", arch="arm64", needs=(SVE,))
def failed_write(context: Context) -> None:
    """After a refused write, also one from a bad address, the set is what it was before.

    Source: arch/arm64/kvm/guest.c, set_sve_vls (the assignment comes last).
    """
    for chosen in lengths_to_try(context):
        vcpu = sve_vcpu(context, finalized=False)
        succeeds(f"vector lengths {chosen}", vcpus.set_vls, vcpu, chosen)
        _refuse(context, vcpu, VectorLengths())
        _refuse(context, vcpu, VectorLengths({MAX, 1}))
        refused_indicative(context, "a write from a bad address", errno.EFAULT, set_bad, vcpu, VLS)
        equal("vector lengths", vcpus.get_vls(vcpu), chosen)


@clause("sve.vls.rewrite", arch="arm64", needs=(SVE, SEVERAL))
def rewrite(context: Context) -> None:
    """Before FINALIZE the set may be written again and again, smaller and larger; the last one counts.

    Source: arch/arm64/kvm/guest.c, set_sve_vls.
    """
    vcpu = sve_vcpu(context, finalized=False)
    choices = lengths_to_try(context)
    for wanted in (choices[0], choices[-1], choices[0], *choices):
        succeeds(f"vector lengths {wanted}", vcpus.set_vls, vcpu, wanted)
        equal("vector lengths", vcpus.get_vls(vcpu), wanted)
    succeeds(f"vector lengths {choices[0]}", vcpus.set_vls, vcpu, choices[0])
    succeeds("FINALIZE", vcpus.finalize, vcpu)
    equal("vector lengths after FINALIZE", vcpus.get_vls(vcpu), choices[0])


@clause("sve.vls.nonsve-enoent", arch="arm64")
def without_sve(context: Context) -> None:
    """A vCPU without SVE has no set of vector lengths: reading and writing it is ENOENT.

    Source: arch/arm64/kvm/guest.c, get_sve_vls, set_sve_vls.
    """
    vcpu = plain_vcpu(context)
    refused_indicative(context, "reading it", errno.ENOENT, vcpus.get_vls, vcpu)
    refused_indicative(context, "writing it", errno.ENOENT, vcpus.set_vls, vcpu, {1})


@clause("sve.vls.wrong-size-einval", arch="arm64", needs=(SVE,))
def wrong_size(context: Context) -> None:
    """The set's number with another size than 512 bits names no register.

    Source: arch/arm64/kvm/guest.c, sve_reg_to_region.
    """
    vcpu = sve_vcpu(context, finalized=False)
    for size in (0, 2, 3, 5, 7, 8):
        register = Register(VLS & ~(0xF << 52) | size << 52)
        refused_indicative(context, f"reading {register:#x}", errno.EINVAL, vcpu.get_one_reg, register)
        value = b"\1".ljust(register.size, b"\0")
        refused_indicative(context, f"writing {register:#x}", errno.EINVAL, vcpu.set_one_reg, register, value)
    equal("vector lengths", vcpus.get_vls(vcpu), lengths(context))


@clause("sve.vls.per-vcpu", arch="arm64", needs=(SVE, SEVERAL), info=True)
def per_vcpu(context: Context) -> None:
    """vCPUs of one VM may have different vector lengths.

    The architecture allows it and operating systems do not expect it; recorded so that a change is noticed.

    Source: arch/arm64/kvm/guest.c, set_sve_vls (sve_max_vl of the vCPU).
    """
    choices = lengths_to_try(context)
    vm = context.vm()
    made = []
    for number, wanted in enumerate((choices[0], choices[-1])):
        vcpu = vm.create_vcpu(number)
        vcpus.init(vcpu, Feature.SVE)
        succeeds(f"vector lengths {wanted}", vcpus.set_vls, vcpu, wanted)
        vcpus.finalize(vcpu)
        made.append(vcpu)
    found = [str(vcpus.get_vls(vcpu)) for vcpu in made]
    context.note(f"two vCPUs of one VM have {found[0]} and {found[1]}")
    equal("the sets of two vCPUs", found, [str(choices[0]), str(choices[-1])])


@clause("sve.vls.guest-agrees", arch="arm64", needs=(SVE, GUEST_RUNS), timeout=30)
def guest_agrees(context: Context) -> None:
    """For every ZCR_EL1.LEN the guest's RDVL is the largest length of its set that is not longer than asked for.

    Every set that KVM can give is tried.

    Source: arch/arm64/kvm/hyp/include/hyp/switch.h (ZCR_EL2.LEN); Arm ARM, D23 "ZCR_EL1".
    """
    for wanted in lengths_to_try(context):
        guest = sve_guest(context, wanted)
        call(context, guest, f"a guest with {wanted}", "lengths", 0)
        expected = [QUADWORD * wanted.granted(length + 1) for length in range(16)]
        equal(f"RDVL for LEN 0 to 15 of a guest with {wanted}", guest.mailbox.values, expected)
        guest.close()


@clause("sve.vls.bigger-than-host-rejected-cleanly", arch="arm64", needs=(SVE,))
def bigger(context: Context) -> None:
    """The set of a host with longer vectors is refused, and the vCPU can still be given one that fits and run.

    It is what makes the migration of a guest to a host with shorter vectors fail early.

    Source: arch/arm64/kvm/guest.c, set_sve_vls.
    """
    full = lengths(context)
    vcpu = sve_vcpu(context, finalized=False)
    _refuse(context, vcpu, VectorLengths(full | {full.maximum + 1}))
    _refuse(context, vcpu, VectorLengths({*range(1, full.maximum + 1), 2 * full.maximum}))
    succeeds("a set that fits", vcpus.set_vls, vcpu, full.up_to(min(full)))
    succeeds("FINALIZE", vcpus.finalize, vcpu)
    succeeds("KVM_RUN", enter, vcpu)
    equal("vector lengths", vcpus.get_vls(vcpu), full.up_to(min(full)))


@clause("sve.vls.superset-host-hole", arch="arm64", needs=(SVE,))
def superset(context: Context) -> None:
    """A set is accepted exactly if it is this host's own up to the set's largest: longer vectors here do not suffice.

    All sets of the first six lengths are tried. {1,2} fits {1,2,3,4} and {1,2,4}, which refuse each other's.

    Source: arch/arm64/kvm/guest.c, set_sve_vls.
    """
    full = lengths(context)
    vcpu = sve_vcpu(context, finalized=False)
    for bits in range(1, 64):
        wanted = VectorLengths(vq for vq in range(1, 7) if bits >> vq - 1 & 1)
        if wanted == full.up_to(wanted.maximum):
            succeeds(f"vector lengths {wanted}", vcpus.set_vls, vcpu, wanted)
            equal("vector lengths", vcpus.get_vls(vcpu), wanted)
        else:
            _refuse(context, vcpu, wanted)
