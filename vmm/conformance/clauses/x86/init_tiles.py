# SPDX-License-Identifier: Apache-2.0
"""INIT and what came after AVX-512: tiles, XFD, PKRU."""

from __future__ import annotations

from vmm.conformance.context import Context
from vmm.conformance.expect import equal
from vmm.conformance.registry import clause
from vmm.conformance.x86.apic import INIT_BY_MESSAGE, send_init, with_local_apics
from vmm.conformance.x86.common import (
    GUEST_PKRU,
    GUEST_XSAVE,
    TILE_GUESTS,
    TILEDATA,
    XSAVE2,
    permit_tiles,
    tile_table,
    untiled_features,
)
from vmm.conformance.x86.tiles import AREA_SIZE, TileImage
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import VirtualMachine
from vmm.x86.cpuid import Cpuid, set_cpuid
from vmm.x86.msr import get_msr, set_msr
from vmm.x86.msr_names import Msr
from vmm.x86.registers import get_xcr0, set_xcr0
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import XsaveArea, get_xsave, set_xsave

_ARMED = 1 << TILEDATA
_PKRU = 0x5555ABC0


def _second(context: Context, table: Cpuid, xcr0: int) -> tuple[VirtualMachine, Vcpu]:
    """A VM whose second vCPU has a CPUID and an XCR0; the first one takes no INIT."""
    vm = with_local_apics(context.vm())
    vm.create_vcpu(0)
    vcpu = vm.create_vcpu(1)
    set_cpuid(vcpu, table)
    set_xcr0(vcpu, xcr0)
    return vm, vcpu


@clause("init.preserves-tiles", arch="x86", needs=(*TILE_GUESTS, *INIT_BY_MESSAGE))
def init_preserves_tiles(context: Context) -> None:
    """INIT leaves TILECFG and all tiles as they are, byte by byte, and XCR0 with them.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_reset, kvm_xstate_reset (MPX and CET only); Intel SDM volume 1, 13.6.
    """
    permit_tiles(context)
    table = tile_table(context)
    vm, vcpu = _second(context, table, table.xcr0)
    image = TileImage.random(61)
    area = XsaveArea.initial(AREA_SIZE)
    image.put(area)
    set_xsave(vcpu, area)
    send_init(vm, vcpu)
    equal("XCR0 after INIT", get_xcr0(vcpu), table.xcr0)
    image.check_area(get_xsave(vcpu))


@clause("init.preserves-xfd", arch="x86", needs=(*TILE_GUESTS, *INIT_BY_MESSAGE), info=True)
def init_preserves_xfd(context: Context) -> None:
    """What INIT leaves in IA32_XFD and IA32_XFD_ERR: what was there.

    The manual says what RESET does to them, and not what INIT does.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_reset (nothing writes either); Intel SDM volume 1, 13.14.
    """
    permit_tiles(context)
    table = tile_table(context)
    vm, vcpu = _second(context, table, table.xcr0)
    for msr in (Msr.XFD, Msr.XFD_ERR):
        equal("1<<18 accepted", set_msr(vcpu, msr, _ARMED), True)
    send_init(vm, vcpu)
    seen = tuple(get_msr(vcpu, msr) for msr in (Msr.XFD, Msr.XFD_ERR))
    context.note(f"IA32_XFD {seen[0]:#x}, IA32_XFD_ERR {seen[1]:#x}")
    equal("IA32_XFD and IA32_XFD_ERR after INIT", seen, (_ARMED, _ARMED))


@clause("init.preserves-pkru", arch="x86", needs=(GUEST_XSAVE, XSAVE2, GUEST_PKRU, *INIT_BY_MESSAGE))
def init_preserves_pkru(context: Context) -> None:
    """INIT leaves PKRU as it is.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_reset (vcpu->arch.pkru); Intel SDM volume 3, table 11-1.
    """
    vm, vcpu = _second(context, context.host.facts.cpuid, untiled_features(context))
    area = get_xsave(vcpu)
    size = area.layout[XFeature.PKRU].size
    area.set_component(XFeature.PKRU, _PKRU.to_bytes(4, "little") + bytes(size - 4))
    set_xsave(vcpu, area)
    send_init(vm, vcpu)
    seen = get_xsave(vcpu)
    equal("XSTATE_BV[9] after INIT", seen.xstate_bv >> XFeature.PKRU & 1, 1)
    equal("PKRU after INIT", int.from_bytes(seen.component(XFeature.PKRU)[:4], "little"), _PKRU)
