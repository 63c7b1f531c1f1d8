# SPDX-License-Identifier: Apache-2.0
"""Lies about memory types in EPT: the quirk, and what the kernel's trace says of an entry."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable

from tests.mutations.dirty import ENABLE, enables
from tests.mutations.lies import answer, before, honest, refuse
from tests.mutations.registry import lies
from vmm._kvm import ffi, lib
from vmm.conformance.x86.ept import SpteTrace
from vmm.kvm.ioctl import Call, Interposer
from vmm.kvm.system import Kvm
from vmm.x86.memory_types import Quirk

_QUIRKS = lib.KVM_CAP_DISABLE_QUIRKS2
_IPAT = 1 << 6
_FIRST, _DEVICE = (16 << 20) >> 12, (32 << 20) >> 12
_ENTRY = re.compile(r"gfn ([0-9a-f]+) spte ([0-9a-f]+)")


def _traced(change: Callable[[int], int], *gfns: int, since: int = 1) -> Interposer:
    """KVM maps these pages with another entry, from the ``since``-th look at the trace on."""
    read, looks = SpteTrace.lines, 0

    def lines(trace: SpteTrace) -> list[str]:
        nonlocal looks
        looks += 1
        return [_ENTRY.sub(entry, line) for line in read(trace)] if looks >= since else read(trace)

    def entry(match: re.Match[str]) -> str:
        gfn, spte = int(match[1], 16), int(match[2], 16)
        return f"gfn {gfn:x} spte {change(spte) if gfn in gfns else spte:x}"

    setattr(SpteTrace, "lines", lines)  # noqa: B010, in a process that runs one clause
    return honest


def _type(kind: int) -> Callable[[int], int]:
    return lambda spte: spte & ~(7 << 3) | kind << 3


def _toggle_pat(spte: int) -> int:
    return spte ^ _IPAT


def _disable_now(call: Call) -> None:
    row = {"cap": _QUIRKS, "args": [int(Quirk.IGNORE_GUEST_PAT)]}
    lib.vmm_ioctl(call.fd, lib.KVM_ENABLE_CAP, ffi.new("struct kvm_enable_cap *", row))


def _with_pat(lie: Callable[[], Interposer]) -> Interposer:
    """A lie about what follows the quirk; where KVM has none, one about a page that both look at."""
    with Kvm() as kvm:
        return lie() if kvm.check_extension(_QUIRKS) & Quirk.IGNORE_GUEST_PAT else _traced(_type(0), _FIRST)


lies(
    "pat.ept-default",
    the_guests_pat_is_honoured_by_default=lambda: before("KVM_SET_USER_MEMORY_REGION", _disable_now),
    pages_that_are_read_are_uncached=lambda: _traced(_type(0), _FIRST),
    pages_that_are_written_are_write_through=lambda: _traced(_type(4), _FIRST + 3),
    pages_that_are_written_honour_pat=lambda: _traced(_toggle_pat, _FIRST + 2),
    pages_of_a_slot_set_anew_are_write_combining=lambda: _traced(_type(1), _FIRST, since=3),
)

lies(
    "pat.ept-quirk-disabled",
    the_quirk_stays=lambda: answer(ENABLE, 0, enables(_QUIRKS)),
    the_quirk_cannot_be_disabled=lambda: refuse(ENABLE, errno.EINVAL, enables(_QUIRKS)),
    pages_that_are_read_are_uncached=lambda: _traced(_type(0), _FIRST + 1),
    pages_that_are_written_ignore_pat=lambda: _traced(_toggle_pat, _FIRST + 2),
    pages_that_are_written_are_uncached=lambda: _traced(_type(0), _FIRST + 3),
)

lies(
    "pat.ept-quirk-late",
    the_quirk_was_disabled_before=lambda: before("KVM_SET_USER_MEMORY_REGION", _disable_now),
    the_quirk_stays=lambda: answer(ENABLE, 0, enables(_QUIRKS)),
    the_quirk_cannot_be_disabled=lambda: refuse(ENABLE, errno.EINVAL, enables(_QUIRKS)),
    pages_mapped_later_ignore_pat=lambda: _traced(_toggle_pat, _FIRST + 2),
    pages_of_a_slot_set_anew_ignore_pat=lambda: _traced(_toggle_pat, _FIRST, since=4),
)

lies(
    "pat.ept-mtrr-cd",
    mtrrs_count=lambda: _traced(_type(0), _FIRST),
    cr0_cd_counts=lambda: _traced(_type(0), _FIRST + 2),
    mtrrs_count_with_pat=lambda: _with_pat(lambda: _traced(_type(0), _FIRST + 4)),
    cr0_cd_counts_with_pat=lambda: _with_pat(lambda: _traced(_type(0), _FIRST + 6)),
    pat_is_ignored_with_cr0_cd=lambda: _with_pat(lambda: _traced(_toggle_pat, _FIRST + 7)),
    the_quirk_stays=lambda: _with_pat(lambda: answer(ENABLE, 0, enables(_QUIRKS))),
)

lies(
    "pat.ept-device",
    device_memory_is_write_back=lambda: _traced(_type(6), _DEVICE),
    device_memory_ignores_pat=lambda: _traced(_toggle_pat, _DEVICE),
    device_memory_is_write_back_with_pat=lambda: _with_pat(lambda: _traced(_type(6), _DEVICE, since=3)),
    memory_beside_it_is_uncached=lambda: _traced(_type(0), _FIRST),
    the_quirk_stays=lambda: _with_pat(lambda: answer(ENABLE, 0, enables(_QUIRKS))),
)
