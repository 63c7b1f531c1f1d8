# SPDX-License-Identifier: Apache-2.0
"""Real guests on the real /dev/kvm: entry points, exceptions, exits, memory, and nothing left behind."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import LIMIT
from vmm.conformance.x86.image import Image
from vmm.kvm.exits import Budget, Deadline, Hlt, IoIn, IoOut, MmioRead, MmioWrite, Shutdown, Stopped
from vmm.kvm.ioctl import KvmError
from vmm.kvm.memory import PAGE_SIZE, MemoryUnavailable
from vmm.kvm.system import Kvm
from vmm.x86 import cpuid, xfeature
from vmm.x86.guest import DIFFERENT, DONE, Guest, GuestError
from vmm.x86.registers import get_regs, get_sregs, set_sregs, set_xcr0
from vmm.x86.xsave import get_xsave, set_xsave

pytestmark = pytest.mark.kvm
_OSXSAVE = 1 << 18
_PLAIN = 0x7 | xfeature.AVX512


@pytest.fixture
def hello(kvm: Kvm) -> Iterator[Guest]:
    with Guest(kvm, "hello") as guest:
        yield guest


@pytest.mark.parametrize("privilege", [0, 3])
def test_each_simple_exit_arrives_with_its_data(hello: Guest, privilege: int) -> None:
    hello.prepare("_start", privilege=privilege)
    assert hello.resume() == IoOut(0x3F8, 1, ord("H"))
    assert hello.resume() == IoIn(0x3F9, 1)
    hello.vcpu.reply(0x15A)
    assert hello.resume() == MmioWrite(0xD0000000, 8, 0x1122334455667788)
    assert hello.resume() == MmioRead(0xD0000008, 4)
    hello.vcpu.reply(0xFEDCBA9876543210)
    assert hello.event(hello.resume()) == DONE
    assert hello.mailbox.values[:2] == [0x5A, 0x76543210]


def test_a_reply_without_a_question_is_refused(hello: Guest) -> None:
    hello.prepare("_start")
    hello.resume()
    with pytest.raises(ValueError, match="not waiting"):
        hello.vcpu.reply(1)


@pytest.mark.parametrize(
    ("name", "vector", "error"),
    [("de", 0, 0), ("bp", 3, 0), ("ud", 6, 0), ("np", 11, 0x38), ("ss", 12, 0), ("gp", 13, 0), ("pf", 14, 6),
     ("mf", 16, 0), ("ac", 17, 0), ("xm", 19, 0)],
)  # fmt: skip
def test_each_fault_reaches_the_guests_handler(kvm: Kvm, name: str, vector: int, error: int) -> None:
    with Guest(kvm, "exceptions") as guest:
        with pytest.raises(GuestError) as caught:
            guest.call(f"raise_{name}", privilege=3)
        fault = guest.fault()
        assert caught.value.exit == fault
        assert (fault.vector, fault.error, fault.cs & 3) == (vector, error, 3)
        assert fault.rip == guest.payload.symbol(f"at_{name}")
        if name == "pf":
            assert fault.cr2 == 0x140000000


def test_a_triple_fault_is_a_shutdown(hello: Guest) -> None:
    hello.prepare("_start")
    sregs = get_sregs(hello.vcpu)
    sregs.idt.limit = 0
    set_sregs(hello.vcpu, sregs)
    hello.memory.write(hello.payload.symbol("_start"), b"\x0f\x0b")  # UD2
    assert hello.resume() == Shutdown()


def test_a_guest_that_never_leaves_meets_its_deadline(hello: Guest) -> None:
    hello.prepare("spin")
    started = time.monotonic()
    assert hello.resume(0.2) == Deadline()
    assert 0.2 <= time.monotonic() - started < LIMIT
    assert hello.resume(0.1) == Deadline(), "a second deadline after the first"


def test_short_runs_keep_their_deadlines(hello: Guest) -> None:
    """The timer stays armed over many runs: a long limit followed by a short one must not be long."""
    hello.call("ticks", 1, timeout=10 * LIMIT)
    hello.prepare("spin")
    started = time.monotonic()
    assert hello.resume(0.2) == Deadline()
    assert time.monotonic() - started < LIMIT


def test_a_kick_stops_a_running_guest(hello: Guest) -> None:
    hello.prepare("spin")
    timer = threading.Timer(0.2, hello.vcpu.kick)
    timer.start()
    assert hello.resume(LIMIT) == Stopped()
    timer.join()


def test_a_kick_before_the_run_is_not_lost(hello: Guest) -> None:
    hello.prepare("spin")
    hello.vcpu.kick()
    assert hello.resume(LIMIT) == Stopped()


def test_pythons_signal_handlers_run_while_the_guest_goes_on(hello: Guest) -> None:
    seen: list[int] = []
    previous = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        hello.prepare("spin")
        timers = [threading.Timer(delay, os.kill, (os.getpid(), signal.SIGUSR1)) for delay in (0.1, 0.2)]
        for timer in timers:
            timer.start()
        assert hello.resume(0.6) == Deadline()
        for timer in timers:
            timer.join()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert seen == [signal.SIGUSR1] * 2


def test_ticks_are_absorbed_up_to_the_budget(hello: Guest) -> None:
    hello.prepare("ticks", 100)
    before = hello.vcpu.entries
    assert hello.resume(ticks=40) == Budget(40)
    assert hello.vcpu.entries - before == 40
    hello.vcpu.complete()
    assert hello.event(hello.resume()) == DONE


def test_completing_an_exit_moves_rip_and_runs_nothing(hello: Guest) -> None:
    hello.prepare("outs", 3)
    assert hello.resume() == IoOut(0x3F8, 1, 0)
    hello.vcpu.complete()
    assert hello.memory.read(get_regs(hello.vcpu).rip - 1, 1) == b"\xee"
    assert hello.resume() == IoOut(0x3F8, 1, 1)


def test_hlt_leaves_the_guest(hello: Guest) -> None:
    hello.prepare("halt")
    assert hello.resume() == Hlt()


def _vector_guest(kvm: Kvm, level: str, seed: int) -> tuple[Guest, Image]:
    guest = Guest(kvm, "xstate", cr4=_OSXSAVE)
    set_xcr0(guest.vcpu, guest.cpuid.xcr0 & _PLAIN)
    image = Image.random(random.Random(seed))
    guest.memory.write(guest.payload.symbol("expected"), image.data)
    assert guest.call(f"fill_{level}", privilege=3) == DONE
    return guest, image


def _levels(kvm: Kvm) -> list[str]:
    xcr0 = cpuid.supported(kvm).xcr0
    return ["sse", *(["avx"] if xcr0 & 4 else []), *(["avx512"] if xcr0 & xfeature.AVX512 else [])]


def test_the_guest_verifies_what_it_filled(kvm: Kvm) -> None:
    for level in _levels(kvm):
        guest, _ = _vector_guest(kvm, level, 1)
        with guest:
            assert guest.call(f"verify_{level}", privilege=3) == DONE


def test_the_guest_names_every_single_byte_that_changed(kvm: Kvm) -> None:
    """One byte of each component, changed from outside, is found by the guest at its place."""
    level = _levels(kvm)[-1]
    guest, image = _vector_guest(kvm, level, 2)
    with guest:
        for number in image.features(level):
            area = get_xsave(guest.vcpu)
            good = area.copy()
            start, length = area.layout[number].ranges[-1]
            offset = start + (3 if number == 0 else length - 3)
            area.data[offset] ^= 0x40
            set_xsave(guest.vcpu, area)
            assert guest.call(f"verify_{level}", privilege=3) == DIFFERENT, xfeature.name(number)
            assert guest.mailbox.read("differences") == 1
            found = image.where(guest.mailbox.read("difference")).split()
            named = area.where(offset).split()
            # The area calls it "YMM YMM15 byte 29", the image "ZMM15 byte 29".
            assert found[-1] == named[-1] and found[0].lstrip("XYZMSTk") == named[1].lstrip("XYZMSTk")
            set_xsave(guest.vcpu, good)
        assert guest.call(f"verify_{level}", privilege=3) == DONE


def test_dirty_pages_are_those_the_guest_wrote(kvm: Kvm) -> None:
    with Guest(kvm, "hello") as guest:
        guest.memory.register(log_dirty=True)
        guest.memory.dirty_pages()
        guest.call("cpuid", 0, 0)
        page = guest.payload.symbol("mailbox_values") // PAGE_SIZE
        assert page in guest.memory.dirty_pages()
        assert guest.memory.dirty_pages() == [], "asking clears the log"


def test_a_new_guest_takes_all_that_another_has_in_memory(kvm: Kvm) -> None:
    with Guest(kvm, "xstate") as guest, Guest(kvm, "xstate") as copy:
        start, end = guest.payload.segments[0][0], guest.payload.end
        for at in (0, 0x2FFF, 0xD000, 0x4FFFF, start - 1, start, end - 1):
            guest.memory.write(at, bytes([guest.memory.read(at, 1)[0] ^ 0xFF]))
        guest.memory.write(start + 0x10, bytes(16))
        copy.take_memory(guest)
        assert copy.memory.read(0, end) == guest.memory.read(0, end)


@pytest.mark.parametrize("backing", ["anonymous", "hugetlb", "guest_memfd"])
def test_memory_of_each_backing_can_be_written_and_read(kvm: Kvm, backing: str) -> None:
    with kvm.create_vm() as vm:
        try:
            memory = vm.add_memory(2 << 20, 0, backing=backing)
        except MemoryUnavailable as error:
            pytest.skip(str(error))
        memory.write(0x1000, b"\xf4")
        assert memory.read(0x1000, 2) == b"\xf4\0"


def test_wrong_memory_is_refused_before_the_kernel_sees_it(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        for size, gpa, backing in (
            (0, 0, "anonymous"),
            (4097, 0, "anonymous"),
            (4096, 1, "anonymous"),
            (4096, 0, "x"),
        ):
            with pytest.raises(ValueError, match=r"memory|backing"):
                vm.add_memory(size, gpa, backing=backing)


def _resources() -> tuple[int, int, int]:
    """Descriptors, mappings and resident KiB of this process."""
    status = Path("/proc/self/status").read_text()
    resident = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    return len(os.listdir("/proc/self/fd")), len(Path("/proc/self/maps").read_text().splitlines()), resident


def test_nothing_is_left_of_two_thousand_guests(kvm: Kvm) -> None:
    def cycles(count: int) -> None:
        for _ in range(count):
            with Guest(kvm, "hello", cpuid=table) as guest:
                guest.call("ticks", 1)

    table = cpuid.supported(kvm)
    cycles(100)
    descriptors, mappings, resident = _resources()
    cycles(1900)
    after = _resources()
    assert after[0] == descriptors
    assert after[1] <= mappings + 2, "the allocator may map an arena"
    assert after[2] <= resident + 1024


def test_a_constructor_that_fails_half_way_leaves_nothing(kvm: Kvm) -> None:
    bad = cpuid.supported(kvm).edit(0x80000008, 0, eax=52 << 8 | 46)

    def fail(times: int) -> None:
        for _ in range(times):
            with pytest.raises(KvmError, match="KVM_SET_CPUID2"):
                Guest(kvm, "hello", cpuid=bad)

    fail(2)  # what is made once for a process is made by the first
    before = _resources()
    fail(20)
    after = _resources()
    assert after[0] == before[0]
    assert after[1] < before[1] + 10  # Python maps a new arena now and then; 20 guests would leave 40 mappings
