# SPDX-License-Identifier: Apache-2.0
"""Tiles in the guest: loaded, kept over exits, copies and neighbours, and shown to nobody else."""

from __future__ import annotations

import json
import os
import random
import threading

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, no_difference, succeeds, true
from vmm.conformance.registry import clause
from vmm.conformance.x86 import state
from vmm.conformance.x86.common import AVX512, HOST_XFD, TILE_GUESTS, judged_call, vector_guest, vector_level
from vmm.conformance.x86.image import Image
from vmm.conformance.x86.tiles import TileImage, TileShapes, expect_fault, explain, loaded, tile_guest, verify
from vmm.conformance.x86.traced import traced_area
from vmm.guest.base import GuestError
from vmm.kvm.exits import Budget, Exit
from vmm.x86 import cpuid, xfeature
from vmm.x86.boot import CR4_OSXSAVE
from vmm.x86.guest import DIFFERENT, Guest
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import XsaveArea, get_xsave, host_layout, set_xsave

_TILES = TILE_GUESTS
_EXITS = 10_000
_XTILE = xfeature.XTILE
_ODD = TileShapes(((16, 64), (1, 64), (16, 4), (7, 60), (3, 8), (0, 0), (16, 36), (5, 64)))


def _twin(context: Context, guest: Guest) -> Guest:
    """A new VM with the guest's memory, without its state."""
    twin = tile_guest(context, guest.cpuid, permit=False)
    twin.take_memory(guest)
    return twin


@clause("amx.tiles-in-area", arch="x86", needs=_TILES)
def tiles_in_area(context: Context) -> None:
    """All 8 tiles and their configuration are in the XSAVE area byte by byte, at the offsets of the host's CPUID.

    Source: Intel SDM volume 1, 13.5.12, 13.5.13; arch/x86/kernel/fpu/core.c, fpu_copy_guest_fpstate_to_uabi.
    """
    guest, image = loaded(context, 1)
    image.check_area(get_xsave(guest.vcpu))


@clause("amx.tile-roundtrip-all8", arch="x86", needs=_TILES, timeout=60)
def survive_exits(context: Context) -> None:
    """8 tiles of 16 rows with 64 bytes each survive 10,000 exits: the guest finds every byte where it was.

    Source: arch/x86/kvm/x86.c, kvm_load_guest_fpu, kvm_put_guest_fpu; arch/x86/kernel/fpu/core.c,
    fpu_swap_kvm_fpstate.
    """
    guest = tile_guest(context)
    image = TileImage.random(2)
    image.load(guest)
    before = guest.vcpu.entries
    judged_call(context, guest, "churn", _EXITS, patience=10)
    true("entries of the guest", guest.vcpu.entries - before >= _EXITS, guest.vcpu.entries - before, f"{_EXITS}")
    image.check(guest)


@clause("amx.tiles-set-in-place", arch="x86", needs=_TILES)
def set_in_place(context: Context) -> None:
    """Tiles written back by KVM_SET_XSAVE after having been overwritten are what the guest then stores.

    Source: arch/x86/kernel/fpu/core.c, fpu_copy_uabi_to_guest_fpstate.
    """
    guest, image = loaded(context, 3)
    saved = get_xsave(guest.vcpu)
    other = TileImage.random(4)
    other.load(guest)
    guest.call("load", timeout=context.timeout)
    succeeds("KVM_SET_XSAVE of the saved tiles", set_xsave, guest.vcpu, saved)
    image.load(guest)
    verify(context, guest, image)


@clause("amx.tiles-new-vm", arch="x86", needs=_TILES)
def restore_in_new_vm(context: Context) -> None:
    """A new VM that is given a guest's saved state stores the same tiles.

    Source: Documentation/virt/kvm/api.rst 4.43, 4.134; arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_set_xsave.
    """
    guest, image = loaded(context, 5)
    msrs = state.saved_xfd_msrs(context.kvm)
    saved = state.capture(guest.vcpu, msrs)
    twin = _twin(context, guest)
    with judged("restoring the saved state"):
        state.restore(twin.vcpu, saved)
    no_difference("the copied state", state.compare(saved, state.capture(twin.vcpu, msrs)))
    verify(context, twin, image)


@clause("amx.tiles-json", arch="x86", needs=_TILES)
def restore_from_json(context: Context) -> None:
    """Tiles that went through a JSON text and back are the ones the guest of a new VM stores.

    Source: Documentation/virt/kvm/api.rst 4.134 (the area is plain data).
    """
    guest, image = loaded(context, 6)
    text = json.dumps({"xsave": get_xsave(guest.vcpu).data.hex()})
    twin = _twin(context, guest)
    area = XsaveArea(bytes.fromhex(json.loads(text)["xsave"]))
    succeeds("KVM_SET_XSAVE of the tiles from the text", set_xsave, twin.vcpu, area)
    verify(context, twin, image)


@clause("amx.set-then-run", arch="x86", needs=_TILES)
def guest_stores_what_was_set(context: Context) -> None:
    """A guest that never loaded a tile stores the tiles that KVM_SET_XSAVE gave it.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_set_xsave; Intel SDM volume 1, 13.8.
    """
    guest = tile_guest(context)
    image = TileImage.random(7)
    area = XsaveArea.initial(host_layout()[XFeature.XTILEDATA].end)
    image.put(area)
    succeeds("KVM_SET_XSAVE with tiles", set_xsave, guest.vcpu, area)
    image.load(guest)
    verify(context, guest, image)


@clause("amx.tilecfg-roundtrip", arch="x86", needs=_TILES)
def odd_shapes(context: Context) -> None:
    """Tiles of odd shapes, one of them not configured, come through exits and a new VM with their configuration.

    Source: Intel SDM volume 1, 18.2; volume 2, LDTILECFG and STTILECFG.
    """
    guest = tile_guest(context)
    image = TileImage.random(8, _ODD)
    image.load(guest)
    judged_call(context, guest, "churn", 50)
    image.check(guest)
    saved = get_xsave(guest.vcpu)
    equal("TILECFG in the area", saved.component(XFeature.XTILECFG), _ODD.data)
    twin = _twin(context, guest)
    succeeds("KVM_SET_XSAVE of the saved tiles", set_xsave, twin.vcpu, saved)
    verify(context, twin, image)


@clause("amx.differences-are-named", arch="x86", needs=_TILES)
def differences_are_named(context: Context) -> None:
    """When the guest itself exchanges two rows or two tiles or changes one byte, the comparison says exactly that.

    Source: Intel SDM volume 1, 18.2 (tiles are rows of 64 bytes).
    """
    guest, image = loaded(context, 21)
    byte = image.tiles[5 * 1024 + 9 * 64 + 33]
    changes = {
        (2 * 1024 + 3 * 64, 2 * 1024 + 7 * 64, 64): "TMM2 row 3 and TMM2 row 7 are swapped",
        (1 * 1024, 4 * 1024, 1024): "TMM1 and TMM4 are swapped",
        (5 * 1024 + 9 * 64 + 33, 0, 0): f"TMM5 row 9 byte 33: expected {byte:#04x}, observed {byte ^ 0xFF:#04x}",
    }
    for parameters, wanted in changes.items():
        guest.call("load", timeout=context.timeout)
        guest.call("exchange", *parameters, timeout=context.timeout)
        equal(f"event after {wanted}", judged_call(context, guest, "verify"), DIFFERENT)
        seen = guest.memory.read(guest.payload.symbol("observed"), len(image.data))
        equal("what the comparison says", explain(image.data, seen), [wanted])
        area = get_xsave(guest.vcpu)
        found = area.component(XFeature.XTILECFG) + area.component(XFeature.XTILEDATA)
        equal("what the comparison of the XSAVE area says", explain(image.data, found), [wanted])


@clause("amx.cpu-migration", arch="x86", needs=_TILES, timeout=30)
def moved_between_threads(context: Context) -> None:
    """Tiles stay the vCPU's when it is run by another host thread at each exit, on another CPU if there is one.

    Source: arch/x86/kvm/x86.c, kvm_arch_vcpu_load; arch/x86/kernel/fpu/core.c, fpu_swap_kvm_fpstate.
    """
    guest = tile_guest(context)
    image = TileImage.random(15)
    image.load(guest)
    cpus = sorted(os.sched_getaffinity(0))
    context.note(f"CPUs: {len(cpus)}")
    guest.prepare("churn", 20)
    exits: list[Exit | Exception] = []

    def step(cpu: int) -> None:
        try:
            os.sched_setaffinity(0, {cpu})
            exits.append(guest.resume(context.timeout, ticks=1))
        except (OSError, GuestError) as error:  # nothing else would see it in a thread
            exits.append(error)

    for turn in range(19):
        thread = threading.Thread(target=step, args=(cpus[turn % len(cpus)],))
        thread.start()
        thread.join()
        with judged(f"the guest's run {turn} in a thread of its own"):
            _raise(exits[turn])
        equal(f"the exit of run {turn}", exits[turn], Budget(1))
    with judged("the guest's last run"):
        guest.finish(guest.resume(context.timeout))
    image.check(guest)


def _raise(outcome: Exit | Exception) -> None:
    if isinstance(outcome, Exception):
        raise outcome


@clause("amx.two-vcpus-isolated", arch="x86", needs=_TILES, timeout=30)
def two_vcpus(context: Context) -> None:
    """Two guests taking turns on one CPU keep their own tiles, and one without AMX in its CPUID never gets at any.

    Source: arch/x86/kernel/fpu/core.c, fpu_swap_kvm_fpstate; arch/x86/kvm/x86.c, kvm_load_xfeatures.
    """
    first, ours = loaded(context, 17)
    second = tile_guest(context, first.cpuid, permit=False)
    theirs = TileImage.random(18)
    theirs.load(second)
    second.call("load", timeout=context.timeout)
    plain_table = first.cpuid.with_xcr0(first.cpuid.xcr0 & ~_XTILE)
    plain = tile_guest(context, plain_table, permit=False)
    for _ in range(10):
        for guest in (first, second):
            judged_call(context, guest, "ticks", 3)
        expect_fault(context, plain, ("tilezero_once",), "#UD", "no AMX in CPUID")
    verify(context, first, ours)
    verify(context, second, theirs)
    equal("bytes of the area of the guest without AMX", len(get_xsave(plain.vcpu).data), 4096)


@clause("amx.no-perm-vcpu-fully-usable", arch="x86", needs=(HOST_XFD, AVX512))
def usable_without_permission(context: Context) -> None:
    """Without the guest permission AVX-512 guests work as ever, and XCR0 takes no tile component.

    Source: arch/x86/kvm/x86.c, __kvm_set_xcr; arch/x86/kvm/x86.h, kvm_get_filtered_xcr0.
    """
    guest = vector_guest(context)
    image = Image.random(random.Random(19))
    guest.memory.write(guest.payload.symbol("expected"), image.data)
    judged_call(context, guest, f"churn_{vector_level(context)}", 20, privilege=3)
    image.check(guest)
    equal("tile components in the guest's CPUID", cpuid.supported(context.kvm).xcr0 & _XTILE, 0)
    tiles = context.own(Guest(context.kvm, "amx", cpuid=cpuid.supported(context.kvm), cr4=CR4_OSXSAVE))
    # At CPL 3, where a KVM that interprets CPL 0 runs the guest's own instructions.
    expect_fault(context, tiles, ("tilezero_once", "ldtilecfg_once"), "#UD", "no permission", privilege=3)


@clause("amx.ptrace-blind", arch="x86", needs=_TILES)
def hidden_from_ptrace(context: Context) -> None:
    """PTRACE_GETREGSET of the vCPU's thread shows the host's own state in the host's own size, never guest tiles.

    Source: arch/x86/kernel/fpu/regset.c, xstateregs_get (the task's fpstate, not the guest's).
    """
    _, image = loaded(context, 20)
    seen = traced_area(context)
    own = host_layout().size()
    true("bytes of the regset", 576 <= len(seen.data) <= own, len(seen.data), f"at most {own}")
    equal("tile data in the host's XSTATE_BV", seen.xstate_bv >> XFeature.XTILEDATA & 1, 0)
    for row in range(0, len(image.tiles), 64):
        equal(f"place of the guest's tile bytes {row} to {row + 63}", seen.data.find(image.tiles[row : row + 64]), -1)
