# SPDX-License-Identifier: Apache-2.0
"""KVM_CAP_XSAVE2, and how many bytes the XSAVE calls really move."""

from __future__ import annotations

import errno
import mmap
import os

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, no_difference, refused, succeeds, true
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import (
    AREA,
    AVX,
    HOST_XFD,
    TILE_GUESTS,
    XCOMP_GUEST,
    XSAVE2,
    configured,
    guest_supported,
    permit_tiles,
    permitted_size,
    plain_features,
    tile_table,
)
from vmm.kvm.bits import bits
from vmm.kvm.vcpu import Vcpu
from vmm.x86 import permission
from vmm.x86.xsave import LEGACY_SIZE, XsaveArea, get_xsave, host_layout, set_xsave

_TILES = (HOST_XFD, XCOMP_GUEST, XSAVE2)


@clause("xsave.size.min", arch="x86", needs=(XSAVE2,))
def minimum(context: Context) -> None:
    """KVM_CAP_XSAVE2 is at least 4096, and the same on /dev/kvm and on a VM.

    Source: Documentation/virt/kvm/api.rst 4.43; arch/x86/kvm/x86.c, kvm_vm_ioctl_check_extension.
    """
    value = context.kvm.check_extension(lib.KVM_CAP_XSAVE2)
    true("KVM_CAP_XSAVE2", value >= LEGACY_SIZE, value, f"at least {LEGACY_SIZE}")
    equal("KVM_CAP_XSAVE2 on the VM", context.vm().check_extension(lib.KVM_CAP_XSAVE2), value)


@clause("xsave.size.tracks-perm", arch="x86", needs=TILE_GUESTS)
def tracks_permission(context: Context) -> None:
    """KVM_CAP_XSAVE2 grows from 4096 to what is permitted and supported when tile data is, on open fds too.

    Source: arch/x86/kvm/x86.c, kvm_vm_ioctl_check_extension (case KVM_CAP_XSAVE2).
    """
    vm = context.vm()
    equal("KVM_CAP_XSAVE2 before", vm.check_extension(lib.KVM_CAP_XSAVE2), LEGACY_SIZE)
    permit_tiles(context)
    full = permitted_size(guest_supported(context))
    equal("KVM_CAP_XSAVE2 on /dev/kvm after", context.kvm.check_extension(lib.KVM_CAP_XSAVE2), full)
    equal("KVM_CAP_XSAVE2 on the VM after", vm.check_extension(lib.KVM_CAP_XSAVE2), full)


@clause("xsave.size.frozen-after-vcpu", arch="x86", needs=(XSAVE2, XCOMP_GUEST))
def frozen_after_vcpu(context: Context) -> None:
    """Once a vCPU exists KVM_CAP_XSAVE2 can no longer change, whatever permission is asked for.

    So a VMM may cache it after its first vCPU.

    Source: arch/x86/kernel/fpu/xstate.c, __xstate_request_perm (FPU_GUEST_PERM_LOCKED).
    """
    context.vcpu()
    before = context.kvm.check_extension(lib.KVM_CAP_XSAVE2)
    refused("a request after the vCPU", (errno.EBUSY, errno.EOPNOTSUPP), permission.request_guest, 18)
    equal("KVM_CAP_XSAVE2", context.kvm.check_extension(lib.KVM_CAP_XSAVE2), before)


@clause("xsave.size.cap-equals-written", arch="x86", needs=TILE_GUESTS)
def capability_equals_written(context: Context) -> None:
    """For a vCPU with tile data KVM_GET_XSAVE2 writes exactly as many bytes as KVM_CAP_XSAVE2 says.

    A VMM that allocates by the capability would otherwise have its heap overwritten.

    Source: arch/x86/kvm/x86.c, kvm_vm_ioctl_check_extension; arch/x86/kernel/fpu/xstate.c, fpstate_realloc.
    """
    permit_tiles(context)
    vcpu = configured(context, tile_table(context))
    promised = context.kvm.check_extension(lib.KVM_CAP_XSAVE2)
    equal("bytes KVM_GET_XSAVE2 writes", len(get_xsave(vcpu).data), promised)


@clause("xsave.size.offsets-follow-host", arch="x86", needs=(AVX, XSAVE2))
def offsets_follow_host(context: Context) -> None:
    """Each component lies where the host's CPUID 0xD says: setting it alone changes those bytes and no others.

    Source: Documentation/virt/kvm/api.rst 4.134; arch/x86/kernel/fpu/xstate.c, __copy_xstate_to_uabi_buf.
    """
    vcpu = configured(context)
    initial = XsaveArea.initial().normalised()
    layout = host_layout()
    # Everywhere beyond the header, so that a wrong offset brings the wrong bytes along.
    filled = bytes((index * 7 + index // 256 | 1) & 0xFF for index in range(576, len(initial.data)))
    for number in bits(plain_features(context) & ~3):
        component = layout[number]
        start, length = component.ranges[0]
        area = XsaveArea.initial()
        area.data[576:] = filled
        area.xstate_bv = 1 << number
        succeeds(f"KVM_SET_XSAVE of {component.name} alone", set_xsave, vcpu, area)
        seen = get_xsave(vcpu)
        name = component.name
        equal(
            f"{name} at {start}",
            bytes(seen.data[start : start + length]),
            bytes(area.data[start : start + length]),
        )
        equal(f"XSTATE_BV with {name}", seen.xstate_bv, 1 << number)
        seen.data[start : start + length] = bytes(length)
        seen.mxcsr = initial.mxcsr  # AVX state brings its MXCSR along
        seen.data[28:32] = bytes(4)
        seen.xstate_bv = 0
        no_difference(f"bytes other than {name}", initial.compare(seen))


def _at_page_end(vcpu: Vcpu, request: int, size: int, beyond: int) -> None:
    """Issue ``request`` with a buffer whose last ``beyond`` bytes lie on a page that does not exist."""
    pages = (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
    fd = os.memfd_create("page-end")
    try:
        os.ftruncate(fd, pages + mmap.PAGESIZE)
        with mmap.mmap(fd, pages + mmap.PAGESIZE) as area:
            os.ftruncate(fd, pages)
            with ffi.from_buffer("uint8_t[]", area) as buffer:
                start = pages - size + beyond
                initial = bytes(XsaveArea.initial(size).data)
                ffi.memmove(buffer + start, initial[: size - beyond], size - beyond)
                vcpu.ioctl(request, buffer + start)
    finally:
        os.close(fd)


@clause("xsave.set-reads-uabi-size", arch="x86", needs=AREA)
def reads_area_size(context: Context) -> None:
    """The XSAVE calls touch exactly the vCPU's area: a buffer that ends with a page works, 64 bytes less is EFAULT.

    Source: arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl (KVM_SET_XSAVE: memdup_user of uabi_size).
    """
    vcpu = configured(context)
    for name, request in (("KVM_SET_XSAVE", lib.KVM_SET_XSAVE), ("KVM_GET_XSAVE2", lib.KVM_GET_XSAVE2)):
        succeeds(f"{name} up to the page's end", _at_page_end, vcpu, request, LEGACY_SIZE, 0)
        refused(f"{name} beyond it", errno.EFAULT, _at_page_end, vcpu, request, LEGACY_SIZE, 64)


@clause("xsave.set-reads-tile-size", arch="x86", needs=_TILES)
def reads_tile_size(context: Context) -> None:
    """For a vCPU with tile data the XSAVE calls touch the whole area: 4096 bytes are no longer enough.

    Source: arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl (KVM_SET_XSAVE: memdup_user of uabi_size).
    """
    permit_tiles(context)
    vcpu = configured(context, tile_table(context))
    full = permitted_size()
    for name, request in (("KVM_SET_XSAVE", lib.KVM_SET_XSAVE), ("KVM_GET_XSAVE2", lib.KVM_GET_XSAVE2)):
        succeeds(f"{name} of {full} bytes", _at_page_end, vcpu, request, full, 0)
        refused(f"{name} of 4096 bytes", errno.EFAULT, _at_page_end, vcpu, request, full, full - 4096)


@clause("xsave.get-einval", arch="x86", needs=_TILES)
def legacy_get_refused(context: Context) -> None:
    """KVM_GET_XSAVE fails with EINVAL for an area above 4096 bytes: it does not truncate.

    Source: arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl (case KVM_GET_XSAVE).
    """
    permit_tiles(context)
    small = configured(context)
    succeeds("KVM_GET_XSAVE of a small area", get_xsave, small, legacy=True)
    large = configured(context, tile_table(context))
    refused("KVM_GET_XSAVE of a large area", errno.EINVAL, get_xsave, large, legacy=True)
