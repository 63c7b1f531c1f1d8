# SPDX-License-Identifier: Apache-2.0
"""The one door to the kernel: errors, the trace, interposers."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import platform
from collections.abc import Callable, Iterator

import pytest

from vmm._kvm import ffi, lib
from vmm.kvm import ioctl as door
from vmm.kvm.ioctl import Call, KvmError, Trace
from vmm.kvm.system import Kvm

NO_FD = -1
on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason=f"x86 calls; this is {platform.machine()}")


@pytest.fixture
def trace() -> Iterator[Trace]:
    recorded = Trace()
    door.set_trace(recorded)
    yield recorded
    door.set_trace(None)


def answer(result: int) -> door.Interposer:
    """A kernel that answers everything with ``result``."""
    return lambda call, proceed: result


def is_raw() -> bool:
    """Whether the door is one call into C."""
    entries = (door._enter_ioctl, door._enter_value, door._enter_run)
    return entries == (lib.vmm_ioctl, lib.vmm_ioctl_value, lib.vmm_run)


# Errors


def test_an_error_carries_its_call_and_errno() -> None:
    error = KvmError("KVM_SET_XCRS", 22)
    assert (error.call, error.errno, error.errno_name) == ("KVM_SET_XCRS", errno.EINVAL, "EINVAL")
    assert str(error).startswith("KVM_SET_XCRS failed with EINVAL: ")
    assert isinstance(error, OSError)


def test_an_error_without_a_meaning_of_its_own_has_the_text_of_its_errno() -> None:
    assert str(KvmError("KVM_NMI", 12)) == f"KVM_NMI failed with ENOMEM: {os.strerror(12)}"


def test_an_errno_without_a_name_is_shown_as_a_number() -> None:
    # 524 is the kernel's own ENOTSUPP, which some KVM paths let out.
    assert str(KvmError("KVM_NMI", 524)).startswith("KVM_NMI failed with errno 524: ")


def test_an_error_survives_pickle_and_copy() -> None:
    error = KvmError("KVM_CREATE_VCPU", errno.EEXIST)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is KvmError
        assert (again.call, again.errno, str(again)) == (error.call, error.errno, str(error))


@pytest.mark.parametrize(("call", "name"), sorted(door._MEANINGS))
def test_a_meaning_belongs_to_a_known_call_and_errno(call: str, name: str) -> None:
    assert hasattr(lib, call) or platform.machine() != "x86_64"
    assert isinstance(getattr(errno, name), int)
    meaning = door._MEANINGS[call, name]
    assert len(meaning.split()) >= 4 and not meaning.endswith(".") and "\n" not in meaning


def test_a_refused_call_names_the_request() -> None:
    with open(os.devnull) as file, pytest.raises(KvmError) as caught:
        door.ioctl_value(file.fileno(), lib.KVM_GET_API_VERSION)
    assert caught.value.call == "KVM_GET_API_VERSION"
    assert caught.value.errno == errno.ENOTTY


def test_a_refused_call_with_a_pointer_names_the_request() -> None:
    with pytest.raises(KvmError, match="KVM_SET_MP_STATE failed with EBADF"):
        door.ioctl(NO_FD, lib.KVM_SET_MP_STATE, ffi.new("struct kvm_mp_state *"))


def test_a_refused_run_names_kvm_run() -> None:
    with pytest.raises(KvmError, match="KVM_RUN failed with EBADF"):
        door.run(ffi.new("struct vmm_run_control *", {"fd": NO_FD}))


def test_an_error_has_the_errno_of_its_own_call() -> None:
    # Between the system call and Python nothing may read the C library's errno.
    ffi.errno = 99
    with pytest.raises(KvmError) as caught:
        door.ioctl_value(NO_FD, lib.KVM_RUN)
    assert caught.value.errno == errno.EBADF


# Names


@pytest.mark.parametrize(
    ("request_number", "name"),
    [
        (0xAE80, "KVM_RUN"),
        (0xAE01, "KVM_CREATE_VM"),
        (0x4068AEA3, "KVM_ENABLE_CAP"),
        (0x40A0AE49, "KVM_SET_USER_MEMORY_REGION2"),
        (0xC040AED4, "KVM_CREATE_GUEST_MEMFD"),
        (0x1234, "ioctl 0x1234"),
        (0xAEFF, "ioctl 0xaeff"),
    ],
)
def test_a_request_is_shown_by_its_name(request_number: int, name: str) -> None:
    assert door.request_name(request_number) == name


@on_x86
def test_requests_of_one_number_and_different_size_are_told_apart() -> None:
    names = [door.request_name(number) for number in (0x9000AEA4, 0x5000AEA5, 0x4020AEA5, 0xAEA3, 0x9000AECF)]
    assert names == ["KVM_GET_XSAVE", "KVM_SET_XSAVE", "KVM_SIGNAL_MSI", "KVM_GET_TSC_KHZ", "KVM_GET_XSAVE2"]


@on_x86
def test_an_arch_prctl_is_shown_by_its_name() -> None:
    assert Call("arch_prctl", -1, 0x1025, 18).name == "ARCH_REQ_XCOMP_GUEST_PERM"
    assert Call("arch_prctl", -1, 0x1234, 0).name == "arch_prctl 0x1234"
    assert Call("ioctl", 3, 0x1025, 0).name == "ioctl 0x1025"


# The trace


def test_the_trace_shows_every_call_with_its_result(trace: Trace) -> None:
    with door.interpose(answer(12)):
        door.ioctl_value(NO_FD, lib.KVM_GET_API_VERSION)
        door.ioctl_value(NO_FD, lib.KVM_CHECK_EXTENSION, 0xD0)
    with pytest.raises(KvmError):
        door.ioctl(NO_FD, lib.KVM_RUN)
    assert trace.lines() == [
        "KVM_GET_API_VERSION() = 12",
        "KVM_CHECK_EXTENSION(0xd0) = 12",
        "KVM_RUN(NULL) = -1 EBADF",
    ]


def test_the_trace_keeps_the_last_calls() -> None:
    recorded = Trace(2)
    for number in range(5):
        recorded.add(Call("ioctl", 3, lib.KVM_CREATE_VCPU, number), number)
    assert recorded.count == 5
    assert recorded.lines() == ["... 3 earlier calls", "KVM_CREATE_VCPU(0x3) = 3", "KVM_CREATE_VCPU(0x4) = 4"]


def test_a_trace_that_is_not_full_does_not_mention_earlier_calls() -> None:
    recorded = Trace(2)
    assert recorded.lines() == []
    recorded.add(Call("ioctl", 3, lib.KVM_NMI, 0), 0)
    recorded.add(Call("ioctl", 3, lib.KVM_NMI, 0), -22)
    assert recorded.lines() == ["KVM_NMI() = 0", "KVM_NMI() = -1 EINVAL"]


def test_the_trace_shows_what_a_small_struct_holds(trace: Trace) -> None:
    with door.interpose(answer(0)):
        door.ioctl(NO_FD, lib.KVM_SET_MP_STATE, ffi.new("struct kvm_mp_state *", {"mp_state": 0x01020304}))
    assert trace.lines() == ["KVM_SET_MP_STATE(struct kvm_mp_state 04030201) = 0"]


def test_the_trace_shows_memory_as_it_was_after_the_call(trace: Trace) -> None:
    def fill(call: Call, proceed: Callable[[], int]) -> int:
        call.argument.mp_state = 3
        return 0

    with door.interpose(fill):
        door.ioctl(NO_FD, lib.KVM_GET_MP_STATE, ffi.new("struct kvm_mp_state *"))
    assert trace.lines() == ["KVM_GET_MP_STATE(struct kvm_mp_state 03000000) = 0"]


@pytest.mark.parametrize("kind", ["struct kvm_mp_state *", "uint64_t *", "void *", "struct kvm_run *", "char *"])
def test_the_trace_does_not_read_through_a_bad_pointer(trace: Trace, kind: str) -> None:
    # Were it dereferenced, this process would die of SIGSEGV.
    with pytest.raises(KvmError, match="EBADF"):
        door.ioctl(NO_FD, lib.KVM_SET_MP_STATE, ffi.cast(kind, 0x10))
    assert trace.lines() == [f"KVM_SET_MP_STATE({kind}) = -1 EBADF"]


def test_the_trace_shows_a_large_or_borrowed_buffer_by_its_type(trace: Trace) -> None:
    pages = bytearray(8192)
    with door.interpose(answer(0)):
        for argument in (ffi.new("uint8_t[]", 8192), ffi.from_buffer("uint8_t[]", pages), ffi.new("int[2]")):
            door.ioctl(NO_FD, lib.KVM_RUN, argument)
    assert [line.split("(")[1] for line in trace.lines()] == ["uint8_t[]) = 0", "uint8_t[]) = 0", "int[2]) = 0"]


def test_a_trace_that_was_removed_records_nothing(trace: Trace) -> None:
    door.set_trace(None)
    with door.interpose(answer(1)):
        door.ioctl_value(NO_FD, lib.KVM_NMI)
    assert trace.count == 0


def test_the_trace_shows_what_an_interposer_made_of_the_result(trace: Trace) -> None:
    with door.interpose(answer(-errno.E2BIG)), pytest.raises(KvmError, match="E2BIG"):
        door.ioctl_value(NO_FD, lib.KVM_NMI)
    assert trace.lines() == ["KVM_NMI() = -1 E2BIG"]


# Interposers


def test_the_latest_interposer_is_the_outermost() -> None:
    order: list[str] = []

    def named(name: str) -> door.Interposer:
        def interposer(call: Call, proceed: Callable[[], int]) -> int:
            order.append(f"{name} in")
            result = proceed() * 10 + len(order)
            order.append(f"{name} out")
            return result

        return interposer

    with door.interpose(answer(1)), door.interpose(named("inner")), door.interpose(named("outer")):
        result = door.ioctl_value(NO_FD, lib.KVM_NMI)
    assert order == ["outer in", "inner in", "inner out", "outer out"]
    assert result == (1 * 10 + 2) * 10 + 3


def test_an_interposer_ends_with_its_block() -> None:
    with door.interpose(answer(7)):
        assert door.ioctl_value(NO_FD, lib.KVM_NMI) == 7
        with door.interpose(answer(8)):
            assert door.ioctl_value(NO_FD, lib.KVM_NMI) == 8
        assert door.ioctl_value(NO_FD, lib.KVM_NMI) == 7
    with pytest.raises(KvmError, match="EBADF"):
        door.ioctl_value(NO_FD, lib.KVM_NMI)


def test_an_interposer_is_removed_by_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), door.interpose(answer(7)):
        raise ZeroDivisionError
    assert is_raw()
    with pytest.raises(KvmError, match="EBADF"):
        door.ioctl_value(NO_FD, lib.KVM_NMI)


def test_an_interposer_that_raises_is_removed() -> None:
    def broken(call: Call, proceed: Callable[[], int]) -> int:
        raise RuntimeError("no kernel today")

    with pytest.raises(RuntimeError, match="no kernel today"), door.interpose(broken):
        door.ioctl_value(NO_FD, lib.KVM_NMI)
    assert is_raw()


def test_blocks_left_in_another_order_remove_their_own_interposers() -> None:
    first, second = door.interpose(answer(1)), door.interpose(answer(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    try:
        assert door.ioctl_value(NO_FD, lib.KVM_NMI) == 2
    finally:
        second.__exit__(None, None, None)
    assert is_raw()


def test_an_interposer_can_change_memory_before_and_after_the_call() -> None:
    seen = []

    def kernel(call: Call, proceed: Callable[[], int]) -> int:
        seen.append(call.argument.mp_state)
        call.argument.mp_state = 5
        return 0

    def lie(call: Call, proceed: Callable[[], int]) -> int:
        call.argument.mp_state += 1
        result = proceed()
        call.argument.mp_state *= 2
        return result

    state = ffi.new("struct kvm_mp_state *", {"mp_state": 1})
    with door.interpose(kernel), door.interpose(lie):
        door.ioctl(NO_FD, lib.KVM_SET_MP_STATE, state)
    assert seen == [2]
    assert state.mp_state == 10


def test_a_negative_answer_is_raised_as_an_error() -> None:
    with door.interpose(answer(-errno.ENOENT)), pytest.raises(KvmError) as caught:
        door.ioctl(NO_FD, lib.KVM_GET_ONE_REG, ffi.new("struct kvm_one_reg *"))
    assert (caught.value.call, caught.value.errno) == ("KVM_GET_ONE_REG", errno.ENOENT)
    assert "no such register" in str(caught.value)


@on_x86
def test_an_interposer_sees_arch_prctl() -> None:
    from vmm.x86 import permission

    calls = []

    def kernel(call: Call, proceed: Callable[[], int]) -> int:
        calls.append((call.kind, call.name, call.fd))
        if call.request == 0x1024:
            call.argument[0] = 0x602E7
        return -errno.EBUSY if call.request == 0x1025 else 0

    with door.interpose(kernel):
        assert permission.guest_permitted() == 0x602E7
        with pytest.raises(KvmError) as caught:
            permission.request_guest(18)
    assert calls == [
        ("arch_prctl", "ARCH_GET_XCOMP_GUEST_PERM", -1),
        ("arch_prctl", "ARCH_REQ_XCOMP_GUEST_PERM", -1),
    ]
    assert str(caught.value).startswith("ARCH_REQ_XCOMP_GUEST_PERM failed with EBUSY: ")


@on_x86
def test_the_trace_shows_arch_prctl(trace: Trace) -> None:
    with door.interpose(answer(0)):
        door.arch_prctl_value(lib.ARCH_REQ_XCOMP_GUEST_PERM, 18)
    assert trace.lines() == ["ARCH_REQ_XCOMP_GUEST_PERM(0x12) = 0"]


def test_an_interposer_sees_kvm_run() -> None:
    control = ffi.new("struct vmm_run_control *", {"fd": 77})
    calls = []

    def kernel(call: Call, proceed: Callable[[], int]) -> int:
        calls.append((call.kind, call.name, call.fd, call.argument))
        return int(lib.VMM_RUN_DEADLINE)

    with door.interpose(kernel):
        assert door.run(control) == lib.VMM_RUN_DEADLINE
    assert calls == [("run", "KVM_RUN", 77, control)]


def test_proceeding_reaches_the_kernel() -> None:
    results = []

    def look(call: Call, proceed: Callable[[], int]) -> int:
        results.append(proceed())
        return results[-1]

    read_end, write_end = os.pipe()
    try:
        with door.interpose(look), pytest.raises(KvmError, match="ENOTTY"):
            door.ioctl_value(read_end, lib.KVM_GET_API_VERSION)
    finally:
        os.close(read_end)
        os.close(write_end)
    assert results == [-errno.ENOTTY]


def test_an_unobserved_door_is_one_call_into_c() -> None:
    assert is_raw()
    recorded = Trace()
    door.set_trace(recorded)
    assert not is_raw()
    with door.interpose(answer(0)):
        door.set_trace(None)
        assert not is_raw()
    assert is_raw()


@pytest.mark.kvm
def test_the_door_passes_on_what_the_kernel_answers(kvm: Kvm, trace: Trace) -> None:
    assert kvm.api_version == 12
    with pytest.raises(KvmError) as caught:
        kvm.ioctl_value(lib.KVM_CREATE_VCPU)
    assert (caught.value.call, caught.value.errno_name) == ("KVM_CREATE_VCPU", "EINVAL")
    assert trace.lines() == ["KVM_GET_API_VERSION() = 12", "KVM_CREATE_VCPU() = -1 EINVAL"]
