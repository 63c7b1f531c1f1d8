# SPDX-License-Identifier: Apache-2.0
"""Lies about the VMM's own registers beside a guest."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

from tests.mutations.lies import RUN, Proceed, after, called
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import FCW, FSW, FTW, MXCSR, ST7, XMM3, flip_now, place
from tests.mutations.x86.lies import before_run
from vmm._kvm import ffi, lib
from vmm.conformance.x86.image import Image
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86 import own
from vmm.x86.own import own_features
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import XsaveArea

_ALL = (
    "host.vectors-preserved",
    "host.vectors-over-signal",
    "host.vectors-no-guest-leak",
    "host.vectors-beside-competitor",
    "host.vectors-beside-kernel-fpu",
)


def _held(component: int, byte: int = 0) -> int:
    """Return the offset of a byte of a component, or of XMM3 where this host lacks it."""
    return place(component, byte) if own_features() >> component & 1 else XMM3


def _own(offset: int, new: bytes | None = None) -> Interposer:
    """After a run with the VMM's own registers some bytes of them are others: one is changed, or they are ``new``."""

    def change(call: Call) -> None:
        if call.argument.vectors == ffi.NULL:
            return
        view = memoryview(ffi.buffer(call.argument.vectors.observed, lib.VMM_HOST_AREA)).cast("B")
        if new is None:
            view[offset] ^= 4
        else:
            view[offset : offset + len(new)] = new

    return after(RUN, change)


lies(
    *_ALL,
    a_run_changes_the_vmms_st7=lambda: _own(ST7 + 9),
    a_run_changes_the_vmms_fcw=lambda: _own(FCW + 1),
    a_run_changes_the_vmms_ftw=lambda: _own(FTW),
    a_run_changes_the_vmms_mxcsr=lambda: _own(MXCSR + 1),
    a_run_changes_the_vmms_xmm3=lambda: _own(XMM3),
    a_run_changes_the_vmms_ymm15=lambda: _own(_held(XFeature.YMM, 255)),
    a_run_changes_the_vmms_k7=lambda: _own(_held(XFeature.OPMASK, 63)),
    a_run_changes_the_vmms_zmm0_above_256_bits=lambda: _own(_held(XFeature.ZMM_HI256, 0)),
    a_run_changes_the_vmms_zmm31=lambda: _own(_held(XFeature.HI16_ZMM, 1023)),
    a_run_changes_the_vmms_pkru=lambda: _own(_held(XFeature.PKRU, 2)),
)

lies(
    *(name for name in _ALL if name != "host.vectors-no-guest-leak"),
    a_run_loses_the_vmms_vectors=lambda: _own(512, b"\1"),
    a_run_resets_the_vmms_fcw=lambda: _own(FCW, b"\x7f\3"),
    a_run_resets_the_vmms_fsw=lambda: _own(FSW, bytes(2)),
)


def _guest_runs_with_another(number: int) -> Interposer:
    """Before the ``number``-th run with the VMM's own registers a byte of the guest's XMM3 really changes."""
    turns = iter(range(1, 1 << 30))

    def interposer(call: Call, proceed: Proceed) -> int:
        if called(call) == RUN and call.argument.vectors != ffi.NULL and next(turns) == number:
            flip_now(XMM3)(call.fd)
        return proceed()

    return interposer


lies(*_ALL, the_guest_loses_a_byte_of_its_xmm3=lambda: _guest_runs_with_another(2))


@mutation(*_ALL[:2])
def the_guest_does_not_run() -> Interposer:
    def change(call: Call) -> None:
        if call.argument.vectors != ffi.NULL:
            call.argument.run.exit_reason = lib.KVM_EXIT_INTR

    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        if called(call) == RUN and call.argument.vectors != ffi.NULL:
            change(call)
            return 0
        return result

    return interposer


lies(
    "host.vectors-no-guest-leak",
    the_guests_xmm3_shows_in_the_vmms=lambda: _own(XMM3, Image.random(random.Random(60)).vector(3)[:16]),
    the_guests_zmm20_shows_in_the_vmms_ymm0=lambda: _own(
        _held(XFeature.YMM), Image.random(random.Random(60)).vector(20)[8:16]
    ),
)


@mutation("host.vectors-after-run", "host.vectors-beside-competitor", "xsave.beside-competitor")
def another_process_loses_a_byte_of_its_xmm3() -> Interposer:
    """Its registers pass no door of ours, so the answer is changed where it arrives."""
    honest = own.yield_with_registers

    def losing(area: XsaveArea, calls: int) -> XsaveArea:
        seen = honest(area, calls)
        seen.data[XMM3] ^= 1
        return seen

    own.yield_with_registers = losing
    return lambda call, proceed: proceed()


def _switched(change: Callable[[XsaveArea], object]) -> Interposer:
    """Context switches change the registers of the VMM itself, and not those of its neighbour."""
    honest, vmm = own.yield_with_registers, os.getpid()

    def changed(area: XsaveArea, calls: int) -> XsaveArea:
        seen = honest(area, calls)
        if os.getpid() == vmm:
            change(seen)
        return seen

    own.yield_with_registers = changed
    return lambda call, proceed: proceed()


def _toggled(offset: int) -> Callable[[XsaveArea], object]:
    def change(area: XsaveArea) -> None:
        area.data[offset] ^= 4

    return change


lies(
    "host.vectors-after-run",
    a_switch_after_a_run_changes_the_vmms_st7=lambda: _switched(_toggled(ST7)),
    a_switch_after_a_run_changes_the_vmms_mxcsr=lambda: _switched(_toggled(MXCSR + 1)),
    a_switch_after_a_run_changes_the_vmms_xmm3=lambda: _switched(_toggled(XMM3)),
    a_switch_after_a_run_changes_the_vmms_ymm15=lambda: _switched(_toggled(_held(XFeature.YMM, 255))),
    a_switch_after_a_run_changes_the_vmms_zmm31=lambda: _switched(_toggled(_held(XFeature.HI16_ZMM, 1023))),
    a_switch_after_a_run_changes_the_vmms_pkru=lambda: _switched(_toggled(_held(XFeature.PKRU, 2))),
    the_guest_is_given_the_vmms_xmm3=lambda: before_run(3, flip_now(XMM3)),
)
