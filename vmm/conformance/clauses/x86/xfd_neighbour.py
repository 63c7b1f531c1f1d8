# SPDX-License-Identifier: Apache-2.0
"""IA32_XFD while the kernel uses vector registers on the vCPU's CPU."""

from __future__ import annotations

import os

from vmm.conformance.context import Context
from vmm.conformance.neighbour import KERNEL_VECTORS, Neighbour, encrypting
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import TILE_GUESTS, judged_call, stay_on_one_cpu
from vmm.conformance.x86.tiles import TileImage, tile_guest, verify

_VCPUS = 4
_TOGGLES = 2000
_TURNS = 3


@clause("xfd.irq-kernel-fpu", arch="x86", needs=(*TILE_GUESTS, KERNEL_VECTORS), dangerous=True, timeout=60)
def toggled_beside_kernel(context: Context) -> None:
    """A guest toggles XFD with live tiles while the kernel uses vector registers on its CPU, and can use them later.

    KVM takes the first write of each vCPU itself. If the kernel used its registers between the exit and that write,
    XRSTOR met tiles that XFD disables (CVE-2026-23005). Only few instructions lie between: that they are hit is
    chance, and each new vCPU has one more.

    Source: arch/x86/kernel/fpu/core.c, fpu_update_guest_xfd, kernel_fpu_begin_mask; arch/x86/kvm/vmx/vmx.c,
    vmx_set_msr; commit b45f72177594.
    """
    stay_on_one_cpu()
    with Neighbour(min(os.sched_getaffinity(0)), encrypting) as neighbour:
        neighbour.wait(context.timeout)
        for number in range(_VCPUS):
            guest = tile_guest(context, permit=not number)
            image = TileImage.random(90 + number)
            image.load(guest)
            guest.call("load", timeout=context.timeout)
            worked = 0
            while worked < _TURNS:
                done = neighbour.operations
                judged_call(context, guest, "toggle_xfd", _TOGGLES, patience=4)
                worked += neighbour.has_worked_since(done)
            guest.call("load", timeout=context.timeout)
            verify(context, guest, image)
            guest.close()
