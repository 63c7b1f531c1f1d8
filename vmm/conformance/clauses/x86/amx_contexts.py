# SPDX-License-Identifier: Apache-2.0
"""Tiles of more than one owner: an operating system's tasks in a guest, and the VMM's own signal handlers."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, true
from vmm.conformance.registry import clause
from vmm.conformance.x86 import state
from vmm.conformance.x86.common import TILE_GUESTS, TILEDATA, judged_call
from vmm.conformance.x86.tiles import AREA_SIZE, TileImage, explain, loaded, tile_guest, verify
from vmm.kvm.exits import Budget
from vmm.kvm.ioctl import errno_name
from vmm.x86.guest import Guest
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import XsaveArea

_TURNS = 12
# The ticks at which the guest moves: those of odd numbers are with XFD armed, the others with tiles in use.
_MOVES = (3, 8, 17)


def _areas(guest: Guest) -> tuple[XsaveArea, XsaveArea]:
    """Where the two tasks' tiles are while these do not run."""
    start = guest.payload.symbol("areas")
    first, second = (guest.memory.read(start + AREA_SIZE * number, AREA_SIZE) for number in range(2))
    return XsaveArea(first), XsaveArea(second)


def _give(guest: Guest, images: tuple[TileImage, TileImage]) -> None:
    for number, image in enumerate(images):
        area = XsaveArea.initial(AREA_SIZE)
        image.put(area)
        guest.memory.write(guest.payload.symbol("areas") + AREA_SIZE * number, bytes(area.data))


def _counted(image: TileImage, turns: int) -> bytes:
    """What a task's tiles are after so many of its turns: each adds 1 to the first doubleword."""
    count = int.from_bytes(image.tiles[:4], "little") + turns
    return image.config.data + (count & 0xFFFFFFFF).to_bytes(4, "little") + image.tiles[4:]


def _moved(context: Context, guest: Guest, at: int) -> Guest:
    """The guest in a new VM, with its memory."""
    guest.vcpu.complete()
    msrs = state.saved_xfd_msrs(context.kvm)
    saved = state.capture(guest.vcpu, msrs)
    twin = tile_guest(context, guest.cpuid, permit=False, payload="amx_os")
    twin.take_memory(guest)
    with judged(f"restoring the guest at tick {at}"):
        state.restore(twin.vcpu, saved)
    guest.close()
    return twin


@clause("amx.two-contexts", arch="x86", needs=TILE_GUESTS, timeout=30)
def two_contexts(context: Context) -> None:
    """Two tasks whose tiles the guest's own system switches, by XSAVE, XFD and #NM, keep theirs over exits and moves.

    The guest arms XFD at each switch and restores a task's tiles in the #NM of their first use. It leaves twice in
    each turn, with XFD armed and with tiles live, and moves to a new VM three times.

    Source: Documentation/arch/x86/xstate.rst; Intel SDM volume 1, 13.14; arch/x86/kvm/x86.c, kvm_load_guest_fpu.
    """
    guest = tile_guest(context, payload="amx_os")
    images = TileImage.random(51), TileImage.random(52)
    _give(guest, images)
    guest.prepare("two_tasks", _TURNS)
    done = 0
    for at in _MOVES:
        with judged(f"the guest's run to tick {at}"):
            exit = guest.resume(context.timeout, ticks=at - done)
        equal(f"the exit at tick {at}", exit, Budget(at - done))
        guest, done = _moved(context, guest, at), at
    with judged("the guest's last run"):
        guest.finish(guest.resume(context.timeout), "the tasks")
    values = guest.mailbox.values
    equal("#NM in the guest", values[0], _TURNS)
    equal("#NM with IA32_XFD_ERR 1<<18", values[1], _TURNS)
    equal("other exceptions in the guest", values[2], 0)
    for number, (image, area) in enumerate(zip(images, _areas(guest), strict=True)):
        seen = area.component(XFeature.XTILECFG) + area.component(XFeature.XTILEDATA)
        lines = explain(_counted(image, _TURNS // 2), seen)
        true(f"the tiles of task {number}", not lines, "; ".join(lines[:4]), "those it was given, counted up")


@contextmanager
def _frames() -> Iterator[Any]:
    """Measure the frames of SIGALRM on this thread."""
    frames = ffi.new("struct vmm_signal_frames *")
    for where in (frames, ffi.NULL):
        result = lib.vmm_measure_frames(signal.SIGALRM, where)
        if result:
            raise OSError(-result, f"no handler for SIGALRM on a stack of its own: {errno_name(-result)}")
        if where:
            try:
                yield frames
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)


def _shape(frames: Any) -> tuple[int, int, int]:
    return int(frames.size), int(frames.extended), int(frames.features)


@clause("amx.signal-interrupt", arch="x86", needs=TILE_GUESTS, timeout=30)
def interrupted_by_signals(context: Context) -> None:
    """Signals with handlers that interrupt KVM_RUN lose no tile, and the guest permission does not grow their frames.

    Each frame is measured by its handler, in native code on a stack of its own: the bytes it takes, those of the
    state in it by its own header, and the xfeatures there. They are what they were before there was a permission.

    Source: arch/x86/kernel/fpu/xstate.c, __xstate_request_perm (only the host permission checks signal stacks);
    arch/x86/kernel/fpu/signal.c, copy_fpstate_to_sigframe (the task's fpstate, not the guest's).
    """
    with _frames() as frames:
        signal.raise_signal(signal.SIGALRM)
        equal("signals handled before there was a guest", frames.count, 1)
        before = _shape(frames)
        guest, image = loaded(context, 16)
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
        limit = time.monotonic() + context.timeout
        while frames.count < 20 and time.monotonic() < limit:
            judged_call(context, guest, "ticks", 200)
    if frames.count < 20:
        context.skip(f"needs 20 signals while the guest runs: {frames.count} were handled in {context.timeout:g} s")
    equal("bytes of the largest frame, bytes of its state, its xfeatures", _shape(frames), before)
    equal("tile data in a frame's xfeatures", frames.features >> TILEDATA & 1, 0)
    verify(context, guest, image)
