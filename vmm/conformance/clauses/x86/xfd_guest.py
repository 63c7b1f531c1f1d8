# SPDX-License-Identifier: Apache-2.0
"""IA32_XFD and IA32_XFD_ERR in use: #NM, what survives an exit, and whose they are."""

from __future__ import annotations

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, true
from vmm.conformance.registry import clause
from vmm.conformance.x86 import state
from vmm.conformance.x86.common import TILE_GUESTS, TILEDATA, judged_call, offers
from vmm.conformance.x86.tiles import FULL, TileImage, data_entries, explain, tile_guest, verify
from vmm.x86 import boot, permission, xfeature
from vmm.x86.guest import Guest
from vmm.x86.msr import get_msr, name, set_msr
from vmm.x86.msr_names import Msr
from vmm.x86.xfeature import XFeature

_TILES = TILE_GUESTS
_ARMED = 1 << TILEDATA
_CR0_TS = 1 << 3
_XTILE = xfeature.XTILE


def _ready(context: Context, seed: int = 1) -> tuple[Guest, TileImage]:
    """A guest that may use tiles, its image in memory, nothing loaded yet."""
    guest = tile_guest(context)
    image = TileImage.random(seed)
    image.load(guest)
    return guest, image


def _write(context: Context, guest: Guest, msr: Msr, value: int) -> int:
    """WRMSR in the guest; return the number of faults."""
    judged_call(context, guest, "wrmsr", msr, value)
    return guest.mailbox.read("values", 15)


def _read(context: Context, guest: Guest, msr: Msr) -> int:
    """RDMSR in the guest."""
    judged_call(context, guest, "rdmsr", msr)
    equal(f"faults of RDMSR {name(msr)}", guest.mailbox.read("values", 15), 0)
    return guest.mailbox.values[0]


def _arm(context: Context, guest: Guest) -> None:
    equal(f"faults of WRMSR {name(Msr.XFD)} {_ARMED:#x}", _write(context, guest, Msr.XFD, _ARMED), 0)


def _check_demand(guest: Guest) -> None:
    """What the guest's #NM handler saw has to be what an operating system relies on."""
    values = guest.mailbox.values
    equal("faults", values[15], 1)
    equal("the vector", values[3], 7)
    equal("RIP of the #NM", guest.fault().rip, guest.payload.symbol("at_demand"))
    equal("IA32_XFD_ERR in the handler", values[0], _ARMED)
    equal("CR0.TS in the handler", values[2] & _CR0_TS, 0)
    equal("IA32_XFD_ERR after the handler cleared it", values[1], 0)


@clause("xfd.reset", arch="x86", needs=_TILES)
def reset(context: Context) -> None:
    """A fresh vCPU with AMX has IA32_XFD and IA32_XFD_ERR 0, the architecture's values, not the host's armed XFD.

    Source: arch/x86/kernel/fpu/xstate.c, __fpstate_reset (guest); Intel SDM volume 1, 13.14.
    """
    guest = tile_guest(context)
    for msr in (Msr.XFD, Msr.XFD_ERR):
        equal(f"{name(msr)} for the host", get_msr(guest.vcpu, msr), 0)
        equal(f"{name(msr)} in the guest", _read(context, guest, msr), 0)


@clause("xfd.set-rules-with-tiles", arch="x86", needs=_TILES)
def set_rules(context: Context) -> None:
    """With tile data in CPUID, IA32_XFD and IA32_XFD_ERR take 0 and 1<<18 from the host, and no other bit.

    Source: arch/x86/kvm/x86.c, kvm_set_msr_common (kvm_guest_supported_xfd).
    """
    guest = tile_guest(context)
    for msr in (Msr.XFD_ERR, Msr.XFD):
        for value in (_ARMED, 0):
            equal(f"{name(msr)} = {value:#x} accepted", set_msr(guest.vcpu, msr, value), True)
            equal(f"{name(msr)} after {value:#x}", get_msr(guest.vcpu, msr), value)
        for bit in (*range(18), *range(19, 64)):
            equal(f"{name(msr)} = 1<<{bit} accepted", set_msr(guest.vcpu, msr, 1 << bit), False)
        equal(f"{name(msr)} after the refusals", get_msr(guest.vcpu, msr), 0)


@clause("xfd.guest-write-rules", arch="x86", needs=_TILES)
def guest_write_rules(context: Context) -> None:
    """The guest can set IA32_XFD and IA32_XFD_ERR to 0 and 1<<18 and reads that back; reserved bits are #GP.

    Source: arch/x86/kvm/x86.c, kvm_set_msr_common; Intel SDM volume 1, 13.14.
    """
    guest, _ = _ready(context)
    for msr in (Msr.XFD_ERR, Msr.XFD):
        for bit in (0, 2, 17, 19, 63):
            equal(f"faults of WRMSR {name(msr)} 1<<{bit}", _write(context, guest, msr, 1 << bit), 1)
            equal(f"the fault of WRMSR {name(msr)} 1<<{bit}", guest.fault().name, "#GP")
        for value in (_ARMED, 0):
            equal(f"faults of WRMSR {name(msr)} {value:#x}", _write(context, guest, msr, value), 0)
            equal(f"{name(msr)} in the guest", _read(context, guest, msr), value)
            equal(f"{name(msr)} for the host", get_msr(guest.vcpu, msr), value)


@clause("xfd.needs-tiledata-in-cpuid", arch="x86", needs=_TILES)
def needs_tiledata(context: Context) -> None:
    """With XFD but without tile data in the guest's CPUID, every WRMSR of 1<<18 to IA32_XFD is #GP, also the second.

    Source: arch/x86/kvm/x86.c, kvm_set_msr_common (kvm_guest_supported_xfd is 0).
    """
    plain = context.host.facts.cpuid.without(0xD, int(XFeature.XTILEDATA))
    table = plain.with_xcr0(plain.xcr0 & ~_XTILE)
    guest = tile_guest(context, table, permit=False)
    for turn in (1, 2):
        equal(f"faults of WRMSR {turn}", _write(context, guest, Msr.XFD, _ARMED), 1)
        equal(f"the fault of WRMSR {turn}", guest.fault().name, "#GP")
    equal("faults of WRMSR 0", _write(context, guest, Msr.XFD, 0), 0)


@clause("xfd.nm-delivery", arch="x86", needs=(*_TILES, offers("XGETBV1")))
def nm_delivery(context: Context) -> None:
    """With XFD armed a tile instruction is #NM at itself with IA32_XFD_ERR 1<<18 and CR0.TS 0, and its retry works.

    The guest does what an operating system does: read IA32_XFD_ERR, clear it, disarm XFD, retry.

    Source: arch/x86/kvm/vmx/vmx.c, handle_nm_fault_irqoff; Intel SDM volume 1, 13.14.
    """
    guest, _ = _ready(context)
    judged_call(context, guest, "demand", 0)
    _check_demand(guest)
    judged_call(context, guest, "xinuse")
    equal("tile data in use after the retry", guest.mailbox.values[0] >> TILEDATA & 1, 1)


@clause("xfd.nm-each-instruction", arch="x86", needs=_TILES)
def nm_each_instruction(context: Context) -> None:
    """TILELOADD, TILEZERO and TDPBSSD are #NM with XFD armed and not otherwise.

    Source: Intel SDM volume 1, 13.14; volume 2, exceptions types AMX-E3, E4, E5.
    """
    guest, _ = _ready(context)
    guest.call("load", timeout=context.timeout)
    for entry in ("tileload_once", *data_entries(guest)):
        for armed in (True, False):
            _write(context, guest, Msr.XFD, _ARMED * armed)
            judged_call(context, guest, entry)
            equal(
                f"faults of {entry} with IA32_XFD {_ARMED * armed:#x}", guest.mailbox.read("values", 15), int(armed)
            )
            if armed:
                equal(f"the fault of {entry}", guest.fault().name, "#NM")
                equal(f"IA32_XFD_ERR after {entry}", _read(context, guest, Msr.XFD_ERR), _ARMED)
                _write(context, guest, Msr.XFD_ERR, 0)


@clause("xfd.err-survives-exit", arch="x86", needs=_TILES, timeout=60)
def error_survives_exits(context: Context) -> None:
    """IA32_XFD_ERR keeps 1<<18 over 1,000 exits between #NM and its handler's first read.

    Source: arch/x86/kvm/x86.c, vcpu_enter_guest (guest_fpu.xfd_err is loaded and cleared around each entry).
    """
    guest, _ = _ready(context)
    before = guest.vcpu.entries
    judged_call(context, guest, "demand", 1000, patience=4)
    true("entries of the guest", guest.vcpu.entries - before >= 1000, guest.vcpu.entries - before, "1000 or more")
    _check_demand(guest)


@clause("xfd.err-guest-write", arch="x86", needs=_TILES)
def error_written_by_guest(context: Context) -> None:
    """A value that the guest writes to IA32_XFD_ERR without any #NM stays there over exits until it writes 0.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_set_msr; arch/x86/kvm/x86.c, kvm_set_msr_common (MSR_IA32_XFD_ERR).
    """
    guest, _ = _ready(context)
    for value in (_ARMED, 0):
        equal(f"faults of WRMSR {value:#x}", _write(context, guest, Msr.XFD_ERR, value), 0)
        judged_call(context, guest, "ticks", 50)
        equal("IA32_XFD_ERR in the guest", _read(context, guest, Msr.XFD_ERR), value)
        equal("IA32_XFD_ERR for the host", get_msr(guest.vcpu, Msr.XFD_ERR), value)


@clause("xfd.err-ts-untouched", arch="x86", needs=_TILES)
def task_switched_nm(context: Context) -> None:
    """An #NM because of CR0.TS leaves IA32_XFD_ERR as it is, 0 or 1<<18, also while XFD is armed.

    Kernels before 6.15 read the MSR then too. What they read is what the guest has there, so an SSE instruction,
    which nothing but CR0.TS can stop, shows no difference: xfd.err-with-ts records what a tile instruction shows.

    Source: arch/x86/kvm/vmx/vmx.c, handle_nm_fault_irqoff; Intel SDM volume 1, 13.14.
    """
    guest, _ = _ready(context)
    _arm(context, guest)
    for value in (0, _ARMED):
        equal(f"faults of WRMSR {name(Msr.XFD_ERR)} {value:#x}", _write(context, guest, Msr.XFD_ERR, value), 0)
        _task_switched(context, guest, "sse_once")
        equal(f"XFD_ERR, which was {value:#x}", _read(context, guest, Msr.XFD_ERR), value)


def _task_switched(context: Context, guest: Guest, entry: str) -> None:
    """Run an instruction that has to be #NM with CR0.TS set."""
    guest.prepare(entry)
    boot.enter(guest.vcpu, privilege=0, cr4=guest.cr4, cr0=boot.CR0 | _CR0_TS)
    with judged(f"{entry} with CR0.TS in the guest"):
        guest.finish(guest.resume(context.timeout), f"{entry} with CR0.TS")
    equal(f"faults of {entry}", guest.mailbox.read("values", 15), 1)
    equal(f"the fault of {entry}", guest.fault().name, "#NM")
    equal("CR0.TS in the handler", guest.fault().cr0 & _CR0_TS, _CR0_TS)


@clause("xfd.err-with-ts", arch="x86", needs=_TILES, info=True)
def error_of_a_tile_with_ts(context: Context) -> None:
    """What IA32_XFD_ERR is after a tile instruction that meets both an armed XFD and CR0.TS.

    Whether CR0.TS stops these instructions at all the manual does not say. If it does not, the CPU writes 1<<18, and
    a KVM from 6.15 on, which takes each #NM with CR0.TS set for one without XFD, leaves that in the CPU: the guest
    reads it there, the host reads 0.

    Source: Intel SDM volume 2, exceptions types AMX-E3, AMX-E5; arch/x86/kvm/vmx/vmx.c, is_xfd_nm_fault.
    """
    guest, _ = _ready(context)
    judged_call(context, guest, "ldtilecfg_once")
    _arm(context, guest)
    _task_switched(context, guest, "tilezero_once")
    seen = _read(context, guest, Msr.XFD_ERR)
    context.note(f"IA32_XFD_ERR is {seen:#x} in the guest, {get_msr(guest.vcpu, Msr.XFD_ERR):#x} for the host")
    # Where the CPU has it and KVM does not know, nobody else clears it.
    equal("faults of WRMSR", _write(context, guest, Msr.XFD_ERR, _ARMED), 0)


@clause("xfd.err-sticky-or", arch="x86", needs=_TILES)
def error_is_sticky(context: Context) -> None:
    """A second #NM with IA32_XFD_ERR not cleared after the first leaves the bit set; only a write clears it.

    Source: Intel SDM volume 1, 13.14.
    """
    guest, _ = _ready(context)
    judged_call(context, guest, "ldtilecfg_once")
    _arm(context, guest)
    for turn in (1, 2):
        judged_call(context, guest, "tilezero_once")
        equal(f"faults of TILEZERO {turn}", guest.mailbox.read("values", 15), 1)
        equal(f"IA32_XFD_ERR after #NM {turn}", _read(context, guest, Msr.XFD_ERR), _ARMED)
    _write(context, guest, Msr.XFD, 0)
    equal("IA32_XFD_ERR after disarming XFD", _read(context, guest, Msr.XFD_ERR), _ARMED)


@clause("xfd.ldtilecfg-not-nm", arch="x86", needs=_TILES)
def configuration_is_not_data(context: Context) -> None:
    """LDTILECFG, STTILECFG and TILERELEASE work with XFD armed: only tile data is subject to XFD.

    Source: Intel SDM volume 1, 13.14 (XFD[17] does not exist); volume 2, LDTILECFG.
    """
    guest, _ = _ready(context)
    _arm(context, guest)
    judged_call(context, guest, "ldtilecfg_once")
    equal("faults of LDTILECFG", guest.mailbox.read("values", 15), 0)
    judged_call(context, guest, "release")
    equal("XFD_ERR", _read(context, guest, Msr.XFD_ERR), 0)


@clause("xfd.passthrough-coherent", arch="x86", needs=_TILES)
def passthrough(context: Context) -> None:
    """The host reads the value that the guest wrote last, at every exit, however often the guest toggles XFD.

    Source: arch/x86/kernel/fpu/core.c, fpu_sync_guest_vmexit_xfd_state; arch/x86/kvm/vmx/vmx.c, vmx_set_msr.
    """
    guest, image = _ready(context)
    judged_call(context, guest, "toggle_xfd", 1000)
    equal("IA32_XFD for the host after 1000 toggles", get_msr(guest.vcpu, Msr.XFD), 0)
    for value in (_ARMED, 0, _ARMED, 0):
        _write(context, guest, Msr.XFD, value)
        equal("IA32_XFD for the host", get_msr(guest.vcpu, Msr.XFD), value)
    guest.call("load", timeout=context.timeout)
    verify(context, guest, image)


@clause("xfd.host-isolation", arch="x86", needs=_TILES)
def host_isolation(context: Context) -> None:
    """The VMM thread's own tiles survive guests that arm XFD, take #NM and load tiles; the guest's survive the VMM's.

    Source: arch/x86/kernel/fpu/core.c, fpu_swap_kvm_fpstate; arch/x86/kvm/x86.c, vcpu_enter_guest (IA32_XFD_ERR = 0).
    """
    guest, image = _ready(context)
    permission.request_host(TILEDATA)
    ours = TileImage.random(2)
    for round_number in range(5):
        lib.vmm_host_tiles_load(FULL.data, ours.tiles)
        judged_call(context, guest, "demand", 5)
        _check_demand(guest)
        guest.call("load", timeout=context.timeout)
        stored = ffi.new("uint8_t[]", len(ours.tiles))
        lib.vmm_host_tiles_store(stored)
        lib.vmm_host_tiles_release()
        lines = explain(ours.data, FULL.data + bytes(ffi.buffer(stored)))
        equal(f"the VMM thread's tiles after round {round_number}", lines, [])
        verify(context, guest, image)


@clause("xfd.err-not-leaked-to-host", arch="x86", needs=_TILES)
def error_not_leaked(context: Context) -> None:
    """A guest that leaves with IA32_XFD_ERR set does not disturb the VMM's own first use of tiles.

    Source: arch/x86/kvm/x86.c, vcpu_enter_guest (IA32_XFD_ERR is written 0 after the exit).
    """
    guest, _ = _ready(context)
    _arm(context, guest)
    judged_call(context, guest, "ldtilecfg_once")
    judged_call(context, guest, "tilezero_once")
    equal("IA32_XFD_ERR of the guest", get_msr(guest.vcpu, Msr.XFD_ERR), _ARMED)
    permission.request_host(TILEDATA)
    ours = TileImage.random(3)
    stored = ffi.new("uint8_t[]", len(ours.tiles))
    lib.vmm_host_tiles_load(FULL.data, ours.tiles)  # the first use: #NM in the host
    lib.vmm_host_tiles_store(stored)
    lib.vmm_host_tiles_release()
    equal("the VMM thread's tiles", explain(ours.data, FULL.data + bytes(ffi.buffer(stored))), [])
    equal("IA32_XFD_ERR of the guest afterwards", _read(context, guest, Msr.XFD_ERR), _ARMED)


@clause("xfd.migrates", arch="x86", needs=_TILES)
def migrates(context: Context) -> None:
    """IA32_XFD and IA32_XFD_ERR come over in the MSR list, and on the destination the next tile instruction is #NM.

    A VMM that leaves them out resumes a guest whose kernel believes XFD armed while it is not.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_set_msr (MSR_IA32_XFD arms the intercept for host writes too).
    """
    guest, image = _ready(context)
    judged_call(context, guest, "ldtilecfg_once")
    _arm(context, guest)
    _write(context, guest, Msr.XFD_ERR, _ARMED)
    listed = state.saved_xfd_msrs(context.kvm)
    saved = state.capture(guest.vcpu, listed)
    equal("the saved IA32_XFD", saved["MSRS"].get(Msr.XFD), _ARMED)
    equal("the saved IA32_XFD_ERR", saved["MSRS"].get(Msr.XFD_ERR), _ARMED)
    twin = tile_guest(context, guest.cpuid, permit=False)
    image.load(twin)
    # MSRs before XSAVE: IA32_XFD decides which components KVM_SET_XSAVE takes.
    order = ("MP_STATE", "SREGS", "REGS", "XCRS", "MSRS", "XSAVE", "DEBUGREGS", "EVENTS")
    with judged("restoring the saved state"):
        state.restore(twin.vcpu, saved, order)
    equal("IA32_XFD in the copy", _read(context, twin, Msr.XFD), _ARMED)
    equal("IA32_XFD_ERR in the copy", _read(context, twin, Msr.XFD_ERR), _ARMED)
    _write(context, twin, Msr.XFD_ERR, 0)
    judged_call(context, twin, "tilezero_once")
    equal("faults of TILEZERO in the copy", twin.mailbox.read("values", 15), 1)
    equal("the fault of TILEZERO in the copy", twin.fault().name, "#NM")
    equal("IA32_XFD_ERR after it", _read(context, twin, Msr.XFD_ERR), _ARMED)
