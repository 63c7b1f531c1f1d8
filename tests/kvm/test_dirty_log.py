# SPDX-License-Identifier: Apache-2.0
"""The dirty log: whatever a guest writes is in it, bitmap or ring, and a kernel that loses a page is found."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.patience import LIMIT
from vmm._kvm import ffi, lib
from vmm.arch import module
from vmm.guest.base import BaseGuest
from vmm.kvm.dirty_log import BitmapLog, DirtyLog, RingKvm, RingLog, open_log
from vmm.kvm.exits import Unsupported
from vmm.kvm.ioctl import Call, Interposer, interpose
from vmm.kvm.memory import PAGE_SIZE, MemoryUnavailable
from vmm.kvm.system import Kvm
from vmm.migration.errors import MigrationError
from vmm.migration.line import SocketLine
from vmm.migration.pages import Key
from vmm.migration.precopy import MemorySender
from vmm.migration.wire import Channel

_KEY = Key(bytes(range(32)))
_LOGS = ("clear", "get", "ring")


@contextmanager
def _logged(how: str, entry: str, *parameters: int, privilege: int = 3) -> Iterator[tuple[BaseGuest, DirtyLog]]:
    """A guest of the dirty payload and its dirty log, which is on."""
    try:
        kvm = RingKvm(1024) if how == "ring" else Kvm()
        with kvm, module("guest").Guest(kvm, "dirty", memory_size=16 << 20) as guest:
            if how == "ring":
                log: DirtyLog = RingLog(guest.vm, [guest.vcpu])
            else:
                log = BitmapLog(guest.vm, manual=how == "clear")
                if how == "clear" and not log.manual:
                    pytest.skip("this KVM has no KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2")
            arm = not hasattr(module("guest"), "boot") or module("guest").__name__.endswith("arm64.guest")
            guest.prepare(entry, *parameters, privilege=0 if arm else privilege)
            log.start()
            try:
                yield guest, log
            finally:
                log.stop()
    except MemoryUnavailable as error:
        pytest.skip(str(error))


def _contents(guest: BaseGuest) -> list[bytes]:
    view = guest.memory.view
    return [hashlib.blake2b(view[at : at + PAGE_SIZE]).digest() for at in range(0, len(view), PAGE_SIZE)]


def _take_all(log: DirtyLog) -> None:
    log.collect()
    log.protect(0, 0, log.bits[0])
    log.forget(0, 0, log.bits[0])


@pytest.mark.kvm
@pytest.mark.parametrize("how", _LOGS)
def test_a_page_that_changed_is_in_the_dirty_log(how: str, kvm: Kvm) -> None:
    with _logged(how, "dirty", 4 << 20, 200, 3, 0, 1, 64) as (guest, log):
        assert log.count() == guest.memory.size
        _take_all(log)
        assert log.count() == 0
        for ticks in (1, 3, 50, 90, 500):
            before = _contents(guest)
            exit = guest.resume(LIMIT, ticks=ticks)
            while isinstance(exit, Unsupported) and exit.reason == lib.KVM_EXIT_DIRTY_RING_FULL:
                log.make_room()
                exit = guest.resume(LIMIT, ticks=ticks)
            log.collect()
            changed = {page for page, (a, b) in enumerate(zip(before, _contents(guest), strict=True)) if a != b}
            written = {page for page in changed if page >= (4 << 20) // PAGE_SIZE}
            assert len(written) >= min(ticks, 200) - 1, "the guest wrote nothing: the test proves nothing"
            assert changed <= log.dirty(0)
            log.protect(0, 0, log.bits[0])
            log.forget(0, 0, log.bits[0])


@pytest.mark.kvm
def test_a_full_ring_loses_no_page(kvm: Kvm) -> None:
    pages = 2500
    with _logged("ring", "dirty", 4 << 20, pages, 1, 1, 0, 8) as (guest, log):
        assert isinstance(log, RingLog)
        _take_all(log)
        exit = guest.resume(LIMIT)
        while isinstance(exit, Unsupported) and exit.reason == lib.KVM_EXIT_DIRTY_RING_FULL:
            log.make_room()
            exit = guest.resume(LIMIT)
        assert guest.event(exit) == guest.DONE
        log.collect()
        assert log.filled >= 2
        assert {(4 << 20) // PAGE_SIZE + page for page in range(pages)} <= log.dirty(0)


def _loses_a_page(seen: list[int]) -> Interposer:
    """A kernel that forgets the highest page of each dirty log."""

    def lie(call: Call, proceed: Callable[[], int]) -> int:
        result = proceed()
        if call.name == "KVM_GET_DIRTY_LOG" and result == 0:
            bitmap = ffi.cast("uint64_t *", call.argument.dirty_bitmap)
            words = (16 << 20) // PAGE_SIZE // 64
            value = int.from_bytes(ffi.buffer(bitmap, words * 8), "little")
            if 0 < value.bit_count() < words * 64:
                seen.append(value.bit_length() - 1)
                value &= ~(1 << seen[-1])
                ffi.buffer(bitmap, words * 8)[:] = value.to_bytes(words * 8, "little")
        return result

    return lie


@pytest.mark.kvm
def test_a_kernel_that_loses_a_dirty_page_is_noticed(kvm: Kvm) -> None:
    seen: list[int] = []
    left, right = socket.socketpair()
    thread = threading.Thread(target=lambda: [None for _ in iter(lambda: right.recv(1 << 20), b"")])
    thread.start()
    with _logged("get", "dirty", 8 << 20, 50, 1, 0, 1, 8) as (guest, log):
        sender = MemorySender(Channel(SocketLine(left, "x", LIMIT)), log, _KEY, codec=0, rate=0, check=lambda: None)
        sender.last_round()
        log.collect()
        sender.last_round()
        guest.resume(LIMIT, ticks=20)
        log.collect()
        sender.audit()  # the kernel is honest
        sender.last_round()
        with interpose(_loses_a_page(seen)):
            guest.resume(LIMIT, ticks=200)
            log.collect()
            assert seen
            with pytest.raises(
                MigrationError, match=f"1 pages changed .* at {seen[-1] * PAGE_SIZE:#x}: this KVM loses"
            ):
                sender.audit()
        sender.close()
    left.close()
    thread.join()
    right.close()


@pytest.mark.kvm
def test_a_ring_of_an_impossible_size_is_refused(kvm: Kvm) -> None:
    for entries in (1, 100, 1 << 40):
        with RingKvm(entries) as rings, pytest.raises(MemoryUnavailable, match=r"is not possible|has no dirty rings"):
            rings.create_vm()


@pytest.mark.kvm
def test_a_log_is_a_ring_only_where_there_is_one(kvm: Kvm) -> None:
    with module("guest").Guest(kvm, "hello") as guest:
        log = open_log(guest.vm, [guest.vcpu])
        assert isinstance(log, BitmapLog)
        with pytest.raises(AssertionError):
            log.make_room()
