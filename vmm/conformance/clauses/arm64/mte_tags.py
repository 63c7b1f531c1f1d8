# SPDX-License-Identifier: Apache-2.0
"""The tags of a guest's memory: as the VMM copies them, as the guest sees them, and over a move."""

from __future__ import annotations

import errno
import mmap

from vmm._kvm import ffi, lib
from vmm.arm64.guest import MEMORY_SIZE, Guest
from vmm.arm64.registers import SYSTEM
from vmm.arm64.vcpu import read, write
from vmm.conformance.arm64.common import BAD_ADDRESS, GUEST_RUNS
from vmm.conformance.arm64.mte import (
    GRANULES,
    LDG,
    LDR,
    MTE,
    PAGE,
    STG,
    copy,
    execute,
    get,
    place,
    put,
    tagged,
    with_tag,
)  # fmt: skip
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, succeeds
from vmm.conformance.registry import clause
from vmm.kvm.memory import PAGE_SIZE

# KVM_ARM_TAGS_FROM_GUEST and _TO_GUEST.
_FROM, _TO = 1, 0
# Every tag there is, so that each granule's differs from its neighbours'.
_TAGS = bytes(7 * number % 16 for number in range(GRANULES))
_SOME = (0, 1, 17, GRANULES - 1)
_DATA = 0x1122334455667788
# ESR_EL1 of a synchronous tag check fault: a data abort from EL1, its fault status.
_DATA_ABORT, _TAG_CHECK = 0x25, 0x11


def _granule(number: int) -> int:
    return PAGE + 16 * number


def _loaded(context: Context, guest: Guest, number: int) -> int:
    """The tag of a granule of PAGE, as the guest loads it."""
    return execute(context, guest, "LDG", LDG, _granule(number)).value >> 56


@clause("mte.copy-tags", arch="arm64", needs=(MTE, GUEST_RUNS))
def copy_tags(context: Context) -> None:
    """KVM_ARM_MTE_COPY_TAGS writes tags that the guest loads and reads those that it stores; it returns the length.

    A page that nobody tagged has zeros.

    Source: Documentation/virt/kvm/api.rst 4.130; arch/arm64/kvm/guest.c, kvm_vm_ioctl_mte_copy_tags.
    """
    guest = tagged(context)
    equal("tags of a page that nobody tagged", get(guest.vm, PAGE), (PAGE_SIZE, bytes(GRANULES)))
    equal("what writing tags returns", succeeds("writing tags", put, guest.vm, PAGE, _TAGS), PAGE_SIZE)
    for number in _SOME:
        equal(f"the tag of granule {number} in the guest", _loaded(context, guest, number), _TAGS[number])
    expected = bytearray(_TAGS)
    for number in _SOME:
        expected[number] ^= 0xF
        stored = with_tag(_granule(number), expected[number])
        equal("faults of STG", execute(context, guest, "STG", STG, stored).esr, 0)
    equal("tags after the guest's stores", get(guest.vm, PAGE), (PAGE_SIZE, bytes(expected)))
    equal("tags of the page behind", get(guest.vm, PAGE + PAGE_SIZE), (PAGE_SIZE, bytes(GRANULES)))
    two = get(guest.vm, PAGE, 2 * PAGE_SIZE)
    equal("tags of both pages", two, (2 * PAGE_SIZE, bytes(expected) + bytes(GRANULES)))
    equal("what no length returns", get(guest.vm, PAGE, 0)[0], 0)


@clause("mte.copy-keeps-data", arch="arm64", needs=(MTE, GUEST_RUNS))
def copy_keeps_data(context: Context) -> None:
    """Tags are beside the memory: writing them changes no byte of it, and writing memory no tag.

    Source: Documentation/virt/kvm/api.rst 4.130; arch/arm64/kvm/guest.c, kvm_vm_ioctl_mte_copy_tags.
    """
    guest = tagged(context)
    data = bytes(range(256)) * (PAGE_SIZE // 256)
    guest.memory.write(PAGE, data)
    put(guest.vm, PAGE, _TAGS)
    equal("bytes that writing tags changed", guest.memory.read(PAGE, PAGE_SIZE) != data, False)
    guest.memory.write(PAGE, bytes(PAGE_SIZE))
    equal("tags after the VMM wrote memory", get(guest.vm, PAGE)[1], _TAGS)
    guest.memory.write(PAGE, _DATA.to_bytes(8, "little"))
    equal("what the guest loads", execute(context, guest, "LDR", LDR, PAGE).value, _DATA)
    equal("tags after the guest loaded memory", get(guest.vm, PAGE)[1], _TAGS)


@clause("mte.copy-refusals", arch="arm64", needs=(MTE,))
def copy_refusals(context: Context) -> None:
    """KVM_ARM_MTE_COPY_TAGS takes whole pages of a VM with tags, one flag and no reserved word: else EINVAL.

    Source: Documentation/virt/kvm/api.rst 4.130; arch/arm64/kvm/guest.c, kvm_vm_ioctl_mte_copy_tags.
    """
    vm = context.vm()
    vm.enable_cap(lib.KVM_CAP_ARM_MTE)
    vm.add_memory(MEMORY_SIZE)
    tags = bytearray([0xAA]) * (2 * GRANULES)
    address = place(tags)
    put(vm, PAGE, _TAGS)
    for flags in (_FROM, _TO):
        for odd in (1, 16, PAGE_SIZE // 2):
            refused(f"{odd} bytes into a page", errno.EINVAL, copy, vm, PAGE + odd, PAGE_SIZE, address, flags)
            refused(f"{odd} bytes more than a page", errno.EINVAL, copy, vm, PAGE, PAGE_SIZE + odd, address, flags)
        for bit in (1, 31, 63):
            refused(f"flags {1 << bit:#x}", errno.EINVAL, copy, vm, PAGE, PAGE_SIZE, address, flags | 1 << bit)
        for words in ((1, 0), (0, 1 << 63)):
            refused(f"reserved words {words}", errno.EINVAL, copy, vm, PAGE, PAGE_SIZE, address, flags, words)
    equal("the buffer after the refusals", bytes(tags), bytes([0xAA]) * (2 * GRANULES))
    equal("the tags after the refusals", get(vm, PAGE)[1], _TAGS)
    plain = context.vm()
    plain.add_memory(MEMORY_SIZE)
    refused("tags of a VM without", errno.EINVAL, copy, plain, PAGE, PAGE_SIZE, address, _FROM)
    refused("tags for a VM without", errno.EINVAL, copy, plain, PAGE, PAGE_SIZE, address, _TO)


@clause("mte.copy-partial", arch="arm64", needs=(MTE,))
def copy_partial(context: Context) -> None:
    """Where memory or the buffer ends KVM_ARM_MTE_COPY_TAGS returns how much it has done, and EFAULT for nothing.

    Source: Documentation/virt/kvm/api.rst 4.130; arch/arm64/kvm/guest.c, kvm_vm_ioctl_mte_copy_tags.
    """
    vm = context.vm()
    vm.enable_cap(lib.KVM_CAP_ARM_MTE)
    vm.add_memory(MEMORY_SIZE)
    last = MEMORY_SIZE - PAGE_SIZE
    put(vm, last, _TAGS)
    for name, flags in (("reading", _FROM), ("writing", _TO)):
        refused(f"{name} where there is no memory", errno.EFAULT, copy, vm, MEMORY_SIZE, PAGE_SIZE, 0, flags)
        refused(f"{name} with a bad address", errno.EFAULT, copy, vm, PAGE, PAGE_SIZE, BAD_ADDRESS, flags)
    what = "reading beyond the end"
    equal(what, succeeds(what, get, vm, last, 2 * PAGE_SIZE), (PAGE_SIZE, _TAGS + bytes([0xAA]) * GRANULES))
    what = "writing beyond the end"
    equal(what, succeeds(what, put, vm, last, _TAGS[::-1] + _TAGS), PAGE_SIZE)
    equal("the tags of the last page after that", get(vm, last), (PAGE_SIZE, _TAGS[::-1]))
    # The second page's tags would lie where the process has no memory.
    area = context.own(mmap.mmap(-1, 2 * PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    buffer = ffi.from_buffer("uint8_t[]", area)
    start = int(ffi.cast("uintptr_t", buffer))
    ffi.release(buffer)
    area.resize(PAGE_SIZE)
    end = start + PAGE_SIZE - GRANULES
    what = "reading two pages into the room for one"
    equal(what, succeeds(what, copy, vm, last - PAGE_SIZE, 2 * PAGE_SIZE, end, _FROM), PAGE_SIZE)
    equal("what was read", area[-GRANULES:], bytes(GRANULES))
    area[-GRANULES:] = _TAGS
    what = "writing two pages from the room for one"
    equal(what, succeeds(what, copy, vm, PAGE, 2 * PAGE_SIZE, end, _TO), PAGE_SIZE)
    equal("what was written", get(vm, PAGE), (PAGE_SIZE, _TAGS))


def _checked(context: Context, guest: Guest, number: int, tag: int) -> tuple[int, int, int]:
    """The guest loads a word of a granule by a tag, checked: the word, and the class and the status of the fault."""
    ran = execute(context, guest, "a checked load", LDR, with_tag(_granule(number), tag), checked=True)
    if not ran.esr:
        return ran.value, 0, 0
    return 0, ran.esr >> 26 & 0x3F, ran.esr & 0x3F


@clause("mte.move", arch="arm64", needs=(MTE, GUEST_RUNS))
def move(context: Context) -> None:
    """A guest whose memory, tags and registers another VM gets finds them there: right tags load, wrong ones fault.

    Source: Documentation/virt/kvm/api.rst 4.130, 7.28; arch/arm64/kvm/mmu.c, sanitise_mte_tags.
    """
    guest, twin = tagged(context), tagged(context)
    for number in _SOME:
        guest.memory.write(_granule(number), (_DATA + number).to_bytes(8, "little"))
        execute(context, guest, "STG", STG, with_tag(_granule(number), _TAGS[number]))
    write(guest.vcpu, SYSTEM["GCR_EL1"], 0x1F0F0)
    twin.memory.write(PAGE, guest.memory.read(PAGE, PAGE_SIZE))
    equal("tags that were written", put(twin.vm, PAGE, succeeds("the tags", get, guest.vm, PAGE)[1]), PAGE_SIZE)
    for name in ("RGSR_EL1", "GCR_EL1", "TFSR_EL1", "TFSRE0_EL1"):
        write(twin.vcpu, SYSTEM[name], read(guest.vcpu, SYSTEM[name]))
    for where, one in (("in the first VM", guest), ("in the second VM", twin)):
        for number in _SOME:
            right, wrong = _TAGS[number], _TAGS[number] ^ 1
            equal(f"a load by the right tag {where}", _checked(context, one, number, right), (_DATA + number, 0, 0))
            equal(f"a load by a wrong tag {where}", _checked(context, one, number, wrong),
                  (0, _DATA_ABORT, _TAG_CHECK))  # fmt: skip
    equal("GCR_EL1 in the second VM", read(twin.vcpu, SYSTEM["GCR_EL1"]), 0x1F0F0)
