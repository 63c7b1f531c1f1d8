# SPDX-License-Identifier: Apache-2.0
"""A vCPU's state as a value: what is captured comes back, and what does not come back has a name."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm._kvm import ffi, lib
from vmm.arch import ARCHITECTURE, module
from vmm.kvm.ioctl import Batch, Call, KvmError, interpose
from vmm.kvm.system import Kvm
from vmm.state import trials, volatile
from vmm.state.architecture import here
from vmm.state.capture import capture, prepare, restore
from vmm.state.compare import compare, differences, vcpu_differences
from vmm.state.errors import StateRefused
from vmm.state.explain import explain
from vmm.state.piece import Piece
from vmm.state.policy import Policy
from vmm.state.value import PAGE, Extent, MemoryState, VcpuState, VmState
from vmm.state.vcpu import capture_vcpu, restore_vcpu, steps
from vmm.x86.cpuid import MAX_ENTRIES

kvm_test = pytest.mark.kvm


def check_order(steps: Iterable[Piece], order: Iterable[str]) -> list[str]:
    """Return the constraints that an order of step names breaks, a sentence each."""
    position = {name: index for index, name in enumerate(order)}
    broken = []
    for step in steps:
        for follows in step.after:
            if step.name in position and position.get(follows.step, -1) > position[step.name]:
                broken.append(f"{step.name} comes before {follows.step}: {follows.reason}")
    return broken


@pytest.fixture
def state(kvm: Kvm) -> VmState:
    """The state of a vCPU that differs from a fresh one wherever KVM lets it."""
    with trials.unsettled(kvm, 7) as guest:
        return capture(guest)


@pytest.fixture
def fresh(kvm: Kvm) -> VcpuState:
    """The state of a vCPU to which nothing but its set-up was done."""
    with module("guest").Guest(kvm, "hello") as guest:
        return capture_vcpu(guest.vcpu)


def with_vcpu(state: VmState, vcpu: VcpuState) -> VmState:
    return replace(state, vcpus=(vcpu,))


@kvm_test
def test_a_captured_state_comes_back(kvm: Kvm, state: VmState) -> None:
    with restore(kvm, state) as guest:
        assert compare(state, capture(guest)) == []


@kvm_test
def test_two_captures_of_one_guest_are_equal(kvm: Kvm) -> None:
    with trials.unsettled(kvm, 7) as guest:
        assert compare(capture(guest), capture(guest)) == []


@kvm_test
def test_a_state_without_one_of_its_parts_is_refused(kvm: Kvm, state: VmState) -> None:
    vcpu = state.vcpus[0]
    for name in vcpu.parts:
        with pytest.raises(StateRefused, match=rf"\b{name}\b"):
            restore(kvm, with_vcpu(state, vcpu.without(name)))


@kvm_test
def test_a_state_without_one_of_its_registers_is_refused(kvm: Kvm, state: VmState) -> None:
    vcpu, counted = state.vcpus[0], 0
    for name, part in vcpu.parts.items():
        if isinstance(part, bytes):
            continue
        described = list(explain(ARCHITECTURE, name, {name: part}))
        for number, register in zip(part, described, strict=True):
            less = {key: value for key, value in part.items() if key != number}
            with pytest.raises(StateRefused, match=register.replace("[", r"\[")):
                restore(kvm, with_vcpu(state, vcpu.with_part(name, less)))
            counted += 1
    assert counted > 20


def _skip(request: int) -> Callable[[Call, Callable[[], int]], int]:
    """A restorer that forgets one call."""

    def forget(call: Call, proceed: Callable[[], int]) -> int:
        return 0 if call.kind == "ioctl" and call.request == request else proceed()

    return forget


_CALLS = {
    "x86": ("KVM_SET_SREGS2", "KVM_SET_XCRS", "KVM_SET_XSAVE", "KVM_SET_REGS", "KVM_SET_DEBUGREGS",
            "KVM_SET_VCPU_EVENTS", "KVM_SET_CPUID2"),
    "arm64": ("KVM_ARM_VCPU_FINALIZE", "KVM_ARM_VCPU_INIT"),
}  # fmt: skip


@kvm_test
@pytest.mark.parametrize("name", _CALLS[ARCHITECTURE])
def test_a_restore_that_forgets_a_call_is_noticed(kvm: Kvm, state: VmState, name: str) -> None:
    with interpose(_skip(getattr(lib, name))), pytest.raises(StateRefused):
        restore(kvm, state)


# Two numbers of one register: leaving one of them out loses nothing.
_ALIASES = {0x11: 0x4B564D00, 0x12: 0x4B564D01, 0x4B564D00: 0x11, 0x4B564D01: 0x12}


def _forget_msr(index: int) -> Callable[[Call, Callable[[], int]], int]:
    """A restorer that leaves one MSR out: its entry becomes a second one of another MSR."""

    def forget(call: Call, proceed: Callable[[], int]) -> int:
        if call.kind == "ioctl" and call.request == lib.KVM_SET_MSRS:
            rows = call.argument.entries[0 : call.argument.nmsrs]
            forgotten = {index, _ALIASES.get(index, index)}
            for row in rows:
                if row.index in forgotten:
                    other = next((entry for entry in rows if entry.index not in forgotten), None)
                    if other is None:
                        return 1
                    row.index, row.data = other.index, other.data
        return proceed()

    return forget


def _forget_one_reg(identifier: int) -> Callable[[Call, Callable[[], int]], int]:
    def forget(call: Call, proceed: Callable[[], int]) -> int:
        forgotten = call.kind == "ioctl" and call.request == lib.KVM_SET_ONE_REG and call.argument.id == identifier
        return 0 if forgotten else proceed()

    return forget


def _changed(state: VmState, fresh: VcpuState) -> Iterator[tuple[str, int, str]]:
    """Yield (part, number, name) of the registers whose loss can be seen: those that are not as on a fresh vCPU."""
    for name, part in state.vcpus[0].parts.items():
        if not isinstance(part, bytes):
            described = list(explain(ARCHITECTURE, name, {name: part}))
            reset = fresh.parts.get(name, {})
            for (number, value), register in zip(part.items(), described, strict=True):
                if isinstance(reset, bytes) or reset.get(number) != value:
                    yield name, number, register


@kvm_test
def test_a_restore_that_forgets_a_register_is_noticed(kvm: Kvm, state: VmState, fresh: VcpuState) -> None:
    counted = 0
    for part, number, register in _changed(state, fresh):
        if (part, register) in volatile.load(ARCHITECTURE):
            continue  # it counts on from the time of the restore
        forget = _forget_msr(number) if part in ("MSRS", "XFD") else _forget_one_reg(number)
        with interpose(forget), pytest.raises(StateRefused) as caught:
            restore(kvm, state)
            pytest.fail(f"{part}.{register} was not missed")
        assert any(register in name for name, _ in caught.value.refusals), (register, str(caught.value))
        counted += 1
    assert counted >= 15


@kvm_test
def test_the_calls_in_one_go_do_what_they_do_one_by_one(kvm: Kvm, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []
    real = Batch.run

    def counted(batch: Batch, fd: int, start: int = 0, stop: int | None = None) -> int:
        end = real(batch, fd, start, stop)
        made.append((start, end))
        return end

    monkeypatch.setattr(Batch, "run", counted)
    passed = []

    def watch(call: Call, proceed: Callable[[], int]) -> int:
        passed.append(call.name)
        return proceed()

    with trials.unsettled(kvm, 7) as guest:
        whole = capture(guest)
        first = whole.vcpus[0]
        made.clear()
        second = capture_vcpu(guest.vcpu)
        assert len(made) == 1 and made[0][1] >= 11
        with interpose(watch):
            third = capture_vcpu(guest.vcpu)
        assert len(made) == 2 and made[1] == made[0] and len(passed) == made[0][1]
    with prepare(kvm, whole) as twin, interpose(watch):
        restore_vcpu(twin.vcpu, first)
        one_by_one = capture_vcpu(twin.vcpu)
    with prepare(kvm, whole) as twin:
        restore_vcpu(twin.vcpu, first)
        in_one_go = capture_vcpu(twin.vcpu)
    for other in (second, third, one_by_one, in_one_go):
        assert list(other.parts) == list(first.parts)
        assert vcpu_differences(ARCHITECTURE, first, other) == []


@kvm_test
@pytest.mark.skipif(ARCHITECTURE != "x86", reason=f"CPUID is x86's; this is {ARCHITECTURE}")
def test_another_cpuid_is_not_read_with_the_old_calls(kvm: Kvm) -> None:
    from vmm.x86.cpuid import Cpuid, set_cpuid, supported

    with module("guest").Guest(kvm, "hello") as guest:
        capture_vcpu(guest.vcpu)
        whole = capture_vcpu(guest.vcpu)
        set_cpuid(guest.vcpu, Cpuid(supported(kvm).entries[:-1]))
        less = capture_vcpu(guest.vcpu)
        assert len(less.parts["CPUID"]) == len(whole.parts["CPUID"]) - 40
        assert capture_vcpu(guest.vcpu).parts["CPUID"] == less.parts["CPUID"]


@kvm_test
@pytest.mark.skipif(ARCHITECTURE != "x86", reason=f"MSRs are x86's; this is {ARCHITECTURE}")
def test_a_refusal_whose_reason_is_refused_too_is_a_refusal(kvm: Kvm, state: VmState) -> None:
    refused = 0

    def refuse(call: Call, proceed: Callable[[], int]) -> int:
        nonlocal refused
        if call.name != "KVM_SET_MSRS" or call.argument.nmsrs < 10:
            return proceed()
        refused += 1
        return 3 if refused == 1 else -errno.EFAULT

    with interpose(refuse), pytest.raises(StateRefused, match="MSRS: KVM_SET_MSRS failed with EFAULT"):
        restore(kvm, state)


@kvm_test
@pytest.mark.skipif(ARCHITECTURE != "x86", reason=f"CPUID is x86's; this is {ARCHITECTURE}")
@pytest.mark.parametrize("times", [1, 2])
def test_a_table_that_has_grown_is_read_anew_and_one_that_always_grows_is_an_error(kvm: Kvm, times: int) -> None:
    left = times

    def grow(call: Call, proceed: Callable[[], int]) -> int:
        nonlocal left
        if call.name != "KVM_GET_CPUID2" or call.argument.nent == MAX_ENTRIES or not left:
            return proceed()
        left -= 1
        return -errno.E2BIG

    with module("guest").Guest(kvm, "hello") as guest:
        whole = capture_vcpu(guest.vcpu)
        with interpose(grow), pytest.raises(KvmError, match="KVM_GET_CPUID2") if times > 1 else nullcontext():
            assert vcpu_differences(ARCHITECTURE, whole, capture_vcpu(guest.vcpu)) == []
    assert left == 0


@kvm_test
def test_a_tolerated_refusal_leaves_a_note(kvm: Kvm, state: VmState) -> None:
    vcpu = state.vcpus[0]
    name = {"x86": "MSRS", "arm64": "SYSREGS"}[state.arch]
    part = vcpu.parts[name]
    assert not isinstance(part, bytes)
    number = next(iter(part))
    less = with_vcpu(state, vcpu.with_part(name, {k: v for k, v in part.items() if k != number}))
    if ARCHITECTURE == "arm64":
        ids = vcpu.parts["LIST"]
        assert isinstance(ids, bytes)
        rest = [
            ids[at : at + 8] for at in range(0, len(ids), 8) if int.from_bytes(ids[at : at + 8], "little") != number
        ]
        less = with_vcpu(state, less.vcpus[0].with_part("LIST", b"".join(rest)))
    policy = Policy([f"{name}.*", "LIST.*"])
    with restore(kvm, less, policy):
        assert len(policy.notes) >= 1 and any(note.startswith((f"{name}.", "LIST.")) for note in policy.notes)


@kvm_test
def test_a_state_of_something_else_is_refused(kvm: Kvm, state: VmState) -> None:
    other = "arm64" if state.arch == "x86" else "x86"
    with pytest.raises(StateRefused, match="this is a state of"):
        restore(kvm, replace(state, arch=other))
    with pytest.raises(StateRefused, match="another build"):
        restore(kvm, replace(state, payload=replace(state.payload, digest=bytes(32))))  # type: ignore[type-var]
    with pytest.raises(StateRefused, match="number their vCPUs from 0"):
        restore(kvm, replace(state, vcpus=()))
    with pytest.raises(StateRefused, match="unknown to this version: FUTURE"):
        restore(kvm, with_vcpu(state, state.vcpus[0].with_part("FUTURE", b"x")))


@kvm_test
def test_a_failed_restore_leaves_no_descriptor_behind(kvm: Kvm, state: VmState) -> None:
    import os

    damaged = with_vcpu(state, state.vcpus[0].with_part("EVENTS", b"\xff" * 64))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(StateRefused):
            restore(kvm, damaged)
    assert len(os.listdir("/proc/self/fd")) == before


@kvm_test
@pytest.mark.skipif(ARCHITECTURE != "x86", reason="VMX and SVM are x86")
@pytest.mark.parametrize(("register", "bit"), [("cr4", 13), ("efer", 12)])
def test_a_guest_that_virtualizes_is_not_captured_without_its_nested_state(
    state: VmState, register: str, bit: int
) -> None:
    vcpu = state.vcpus[0]
    data = vcpu.parts["SREGS"]
    assert isinstance(data, bytes)
    sregs = ffi.new("struct kvm_sregs2 *")
    ffi.memmove(sregs, data, len(data))
    setattr(sregs, register, getattr(sregs, register) | 1 << bit)
    with pytest.raises(StateRefused, match="nested"):
        here().check_complete({**vcpu.parts, "SREGS": bytes(ffi.buffer(sregs))})


@kvm_test
def test_time_may_go_forward_but_not_back(state: VmState) -> None:
    part = "TSC" if state.arch == "x86" else "COUNTERS"
    registers = state.vcpus[0].parts[part]
    assert not isinstance(registers, bytes)
    number, value = next(iter(registers.items()))
    later = {**registers, number: (int.from_bytes(value, "little") + 1000).to_bytes(8, "little")}
    ahead = with_vcpu(state, state.vcpus[0].with_part(part, later))
    assert compare(state, ahead) == []
    assert [found.name.split(".")[0] for found in differences(ahead, state)] == [part]


def test_the_order_of_the_steps_breaks_none_of_their_constraints() -> None:
    order = [step.name for step in steps()]
    assert check_order(steps(), order) == []
    known = set(order)
    assert {follows.step for step in steps() for follows in step.after} <= known


@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_every_volatile_register_has_a_reason(arch: str) -> None:
    entries = volatile.load(arch).values()
    assert entries and all(len(entry.reason) > 20 for entry in entries)


pages = st.lists(st.one_of(st.just(bytes(PAGE)), st.integers(1, 255).map(lambda n: bytes([n]) * PAGE)), max_size=12)


@given(pages)
def test_memory_is_the_same_after_zeros_were_left_out(contents: list[bytes]) -> None:
    data = b"".join(contents)
    found = MemoryState.of(0x10000, memoryview(data))
    rebuilt = bytearray(len(data))
    for extent in found.extents:
        rebuilt[extent.gpa - 0x10000 : extent.gpa - 0x10000 + len(extent.data)] = extent.data
    assert rebuilt == data
    assert sum(len(extent.data) for extent in found.extents) == PAGE * sum(any(page) for page in contents)
    split = [Extent(e.gpa + at, e.data[at : at + PAGE]) for e in found.extents for at in range(0, len(e.data), PAGE)]
    assert MemoryState.merged(0x10000, len(data), split) == found


def test_memory_that_overlaps_or_ends_outside_is_refused() -> None:
    page = b"x" * PAGE
    twice, back, outside = [Extent(0, page)] * 2, [Extent(PAGE, page), Extent(0, page)], [Extent(2 * PAGE, page)]
    for extents in (twice, back, outside, [Extent(0, b"x")], [Extent(1, page)]):
        with pytest.raises(ValueError):
            MemoryState.merged(0, 2 * PAGE, extents)


def test_a_difference_in_memory_has_an_address() -> None:
    first = MemoryState(0, 4 * PAGE, (Extent(PAGE, b"a" * PAGE),))
    second = MemoryState(0, 4 * PAGE, (Extent(PAGE, b"a" * 5 + b"b" + b"a" * (PAGE - 6)),))
    [line] = compare(VmState("x86", (), (first,)), VmState("x86", (), (second,)))
    assert "1 pages differ" in line and hex(PAGE + 5) in line and "61, 62" in line


def test_a_state_cannot_be_changed() -> None:
    vcpu = VcpuState({"MSRS": {2: b"b", 1: b"a"}, "REGS": b"x"})
    assert list(vcpu.parts["MSRS"]) == [1, 2]
    with pytest.raises(TypeError):
        vcpu.parts["REGS"] = b"y"  # type: ignore[index]
    with pytest.raises(TypeError):
        vcpu.parts["MSRS"][1] = b"z"  # type: ignore[index]
