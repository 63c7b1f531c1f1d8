# SPDX-License-Identifier: Apache-2.0
"""What was meant is what has to arrive: a KVM that loses a value whenever it is written is noticed all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import CliRunner

from tests.mutations.lies import assign, before, refuse
from vmm._kvm import ffi, lib
from vmm.arch import ARCHITECTURE, module
from vmm.cli import order as order_command
from vmm.cli import roundtrip as roundtrip_command
from vmm.kvm import ioctl as door
from vmm.kvm.ioctl import Call, Interposer
from vmm.kvm.system import Kvm
from vmm.state import trials
from vmm.state.roundtrip import roundtrip

pytestmark = pytest.mark.kvm
_LSTAR = 0xC0000082


def _lstar(call: Call) -> None:
    for number in range(call.argument.nmsrs):
        if call.argument.entries[number].index == _LSTAR:
            call.argument.entries[number].data = 0


def _far(call: Call) -> None:
    from vmm.arm64.registers import SYSTEM

    if call.argument.id == SYSTEM["FAR_EL1"]:
        ffi.cast("uint64_t *", call.argument.addr)[0] = 0


def _breakpoint(call: Call) -> None:
    call.argument.db[2] = 0


def _without_cr2(call: Call, proceed: Callable[[], int]) -> int:
    """CR2 is lost by either of the calls that set it."""
    if call.name in ("KVM_SET_SREGS", "KVM_SET_SREGS2"):
        call.argument.cr2 = 0
    return proceed()


# Setters that lose a value: what each is called, and the register that is lost.
_LOSERS: dict[str, list[tuple[str, Callable[[], Interposer], str]]] = {
    "x86": [
        ("LSTAR", lambda: before("KVM_SET_MSRS", _lstar), "MSRS.LSTAR"),
        ("DR2", lambda: before("KVM_SET_DEBUGREGS", _breakpoint), "DEBUGREGS.db"),
        ("CR2", lambda: _without_cr2, "SREGS.cr2"),
        ("R15", lambda: before("KVM_SET_REGS", assign("r15", 0)), "REGS.r15"),
        ("NMI", lambda: before("KVM_SET_VCPU_EVENTS", assign("nmi.pending", 0)), "EVENTS.nmi"),
    ],
    "arm64": [("FAR_EL1", lambda: before("KVM_SET_ONE_REG", _far), "SYSREGS.FAR_EL1")],
}


def _losers(names: tuple[str, ...]) -> pytest.MarkDecorator:
    chosen = [pytest.param(lie, lost, id=name) for name, lie, lost in _LOSERS[ARCHITECTURE] if name not in names]
    return pytest.mark.parametrize(("lie", "register"), chosen)


@_losers(())
def test_an_order_matrix_names_what_a_kvm_loses_whatever_the_order(
    kvm: Kvm, lie: Callable[[], Interposer], register: str
) -> None:
    with door.interpose(lie()):
        matrix, _ = trials.measure(kvm, samples=0, seed=1)
    assert [text for text in matrix.lost if text.startswith(register)], matrix.lost
    assert not matrix.as_expected


@_losers(("R15", "NMI"))  # which the guest uses, or would take
def test_a_round_trip_names_what_a_kvm_loses_of_what_the_guest_does_not_use(
    kvm: Kvm, lie: Callable[[], Interposer], register: str
) -> None:
    chain = module("chain")
    with door.interpose(lie()):
        report = roundtrip(kvm, chain.best(kvm), rounds=2, steps=4, seed=5)
    assert report.digest == report.expected  # the guest itself cannot see it
    assert [text for text in report.differences if f"vCPU 0 {register}" in text], report.differences
    assert not report.good


def test_vmm_order_exits_with_1_if_something_is_lost_and_says_what() -> None:
    _, lie, register = _LOSERS[ARCHITECTURE][0]
    with door.interpose(lie()):
        done = CliRunner().invoke(order_command.command, ["--samples", "0"], standalone_mode=False)
    assert done.return_value == 1, done.output
    assert f"lost when it was written, whatever the order: {register}" in done.output


@pytest.mark.skipif(ARCHITECTURE != "x86", reason="the constraint is one of x86's")
def test_vmm_order_exits_with_1_if_a_kvm_does_not_enforce_what_every_kvm_does() -> None:
    """As if KVM_SET_REGS no longer discarded a pending exception."""

    def keep(call: Call, proceed: Callable[[], int]) -> int:
        if call.name != "KVM_SET_REGS":
            return proceed()
        events = ffi.new("struct kvm_vcpu_events *")
        lib.vmm_ioctl(call.fd, lib.KVM_GET_VCPU_EVENTS, events)
        result = proceed()
        if events.exception.pending:
            lib.vmm_ioctl(call.fd, lib.KVM_SET_VCPU_EVENTS, events)
        return result

    with door.interpose(keep):
        done = CliRunner().invoke(order_command.command, ["--samples", "0"], standalone_mode=False)
    assert done.return_value == 1, done.output
    assert "unexpected: REGS before EVENTS is not enforced here" in done.output


@pytest.mark.skipif(ARCHITECTURE != "x86", reason="the pieces are x86's")
def test_vmm_order_exits_with_1_if_a_kvm_enforces_what_no_step_has() -> None:
    """As if the debug registers were refused before the run state was written."""
    ready: set[int] = set()

    def interposer(call: Call, proceed: Callable[[], int]) -> int:
        if call.name == "KVM_CREATE_VCPU":
            result = proceed()
            ready.discard(result)
            return result
        if call.name == "KVM_SET_REGS":
            ready.add(call.fd)
        return proceed() if call.name != "KVM_SET_DEBUGREGS" or call.fd in ready else -22

    with door.interpose(interposer):
        done = CliRunner().invoke(order_command.command, ["--samples", "0"], standalone_mode=False)
    assert done.return_value == 1, done.output
    assert "unexpected: no step has REGS before DEBUGREGS" in done.output


def test_vmm_order_is_a_sentence_where_not_even_our_own_order_works() -> None:
    lie = refuse("KVM_SET_MP_STATE", 22)
    with door.interpose(lie):
        done = CliRunner().invoke(order_command.command, ["--samples", "0"], standalone_mode=False)
    assert done.return_value == 1
    assert "does not restore such a vCPU at all" in done.output and "MP_STATE" in done.output


def test_vmm_roundtrip_exits_with_1_if_something_is_lost_that_the_guest_does_not_use() -> None:
    _, lie, register = _LOSERS[ARCHITECTURE][0]
    with door.interpose(lie()):
        done = CliRunner().invoke(roundtrip_command.command, ["--rounds", "2"], standalone_mode=False)
    assert done.return_value == 1, done.output
    assert "NOT THE SAME" in done.output and register in done.output
