# SPDX-License-Identifier: Apache-2.0
"""Which verdict a clause's end is: only what was judged can fail, and what could not be judged says why."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from vmm.conformance.context import Context, Options
from vmm.conformance.execute import execute
from vmm.conformance.expect import (
    Skipped,
    equal,
    judged,
    no_difference,
    refused,
    refused_indicative,
    subset,
    succeeds,
    true,
)
from vmm.conformance.model import ClauseResult, Verdict
from vmm.conformance.registry import Clause
from vmm.guest.base import GuestError
from vmm.kvm.exits import Deadline, Hlt, InternalError, Shutdown
from vmm.kvm.ioctl import HostError, KvmError, Refused
from vmm.probe.host import Host

Body = Callable[[Context], None]


@pytest.fixture
def run(make_host: Callable[..., Host]) -> Callable[..., ClauseResult]:
    """Runs a function as a clause in this process; it may not open a KVM."""

    def run_body(body: Body, *, info: bool = False) -> ClauseResult:
        clause = Clause("test.it", body, "any", (), info, False, "It holds.", "the tests", 1.0)
        return execute(clause, make_host(), Options())

    return run_body


def _raise(error: BaseException) -> None:
    raise error


def _kvm(number: int = errno.EINVAL) -> None:
    raise KvmError("KVM_SET_XCRS", number)


SETUP_FAILURES = [
    (KvmError("KVM_SET_XCRS", errno.EINVAL), "could not set up: KVM_SET_XCRS failed with EINVAL"),
    (Refused("KVM lists no XCR0"), "could not set up: KVM lists no XCR0"),
    (GuestError("hello.main took #UD", Shutdown()), "could not set up: hello.main took #UD"),
    (HostError("timer_create", errno.EAGAIN, "no guest"), "could not set up: timer_create failed with EAGAIN"),
]


@pytest.mark.parametrize(("error", "reason"), SETUP_FAILURES, ids=lambda value: type(value).__name__)
def test_a_failure_outside_of_an_assertion_is_an_error_with_its_cause(
    run: Callable[..., ClauseResult], error: Exception, reason: str
) -> None:
    for info in (False, True):
        result = run(lambda context: _raise(error), info=info)
        assert result.verdict is Verdict.ERROR
        assert result.reason.startswith(reason)
        assert not result.observed


@pytest.mark.parametrize(
    "body",
    [
        lambda context: succeeds("XCR0", _kvm),
        lambda context: refused("XCR0", errno.EPERM, _kvm),
        lambda context: refused("XCR0", errno.EPERM, int),
        lambda context: equal("XCR0", 1, 2),
        lambda context: true("XCR0", False, 1, "2"),
        lambda context: subset("XCR0", 6, 3),
        lambda context: no_difference("XCR0", ["a bit"]),
    ],
)
def test_an_assertion_that_does_not_hold_is_a_fail(run: Callable[..., ClauseResult], body: Body) -> None:
    result = run(body)
    assert (result.verdict, result.what) == (Verdict.FAIL, "XCR0")
    assert result.expected and result.observed
    assert run(body, info=True).verdict is Verdict.INFO


@pytest.mark.parametrize(("error", "reason"), SETUP_FAILURES[:3], ids=lambda value: type(value).__name__)
def test_what_fails_inside_of_judged_is_a_fail(
    run: Callable[..., ClauseResult], error: Exception, reason: str
) -> None:
    def body(context: Context) -> None:
        with judged("the guest's run"):
            raise error

    result = run(body)
    assert (result.verdict, result.what) == (Verdict.FAIL, "the guest's run")


def test_a_fault_of_the_harness_inside_of_judged_is_an_error(run: Callable[..., ClauseResult]) -> None:
    def body(context: Context) -> None:
        with judged("the guest's run"):
            raise ZeroDivisionError("ours")

    result = run(body)
    assert (result.verdict, result.reason) == (Verdict.ERROR, "ZeroDivisionError: ours")
    assert any("ZeroDivisionError" in line for line in result.trace)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize("check", [succeeds, lambda what, call, n: refused(what, errno.EINVAL, call, n)])
def test_running_out_of_descriptors_is_an_error_inside_of_an_assertion_too(
    run: Callable[..., ClauseResult], check: Callable[..., object], number: int
) -> None:
    result = run(lambda context: check("KVM_CREATE_VM", _kvm, number) and None)
    assert result.verdict is Verdict.ERROR
    assert errno.errorcode[number] in result.reason


@pytest.mark.parametrize("wrapped", [False, True], ids=["outside", "judged"])
def test_a_guest_that_does_not_leave_is_a_timeout_wherever_it_runs(
    run: Callable[..., ClauseResult], wrapped: bool
) -> None:
    error = GuestError("hello.spin left with Deadline()", Deadline())
    body = (lambda context: succeeds("the run", _raise, error)) if wrapped else (lambda context: _raise(error))
    assert run(body).verdict is Verdict.TIMEOUT


@pytest.mark.parametrize(
    "body",
    [
        lambda context: equal("the exit", Deadline(), Hlt()),
        lambda context: true("the exit", False, Deadline(), "HLT"),
    ],
)
def test_a_deadline_that_an_assertion_looks_at_is_a_timeout(run: Callable[..., ClauseResult], body: Body) -> None:
    assert run(body).verdict is Verdict.TIMEOUT


def test_a_deadline_that_was_expected_holds(run: Callable[..., ClauseResult]) -> None:
    assert run(lambda context: equal("the exit of a halted vCPU", Deadline(), Deadline())).verdict is Verdict.PASS


@pytest.mark.parametrize("wrapped", [False, True], ids=["outside", "judged"])
def test_a_guest_that_kvm_cannot_emulate_is_an_error_wherever_it_runs(
    run: Callable[..., ClauseResult], wrapped: bool
) -> None:
    error = GuestError("amx.ldtilecfg left with InternalError", InternalError(1, ()))
    body = (lambda context: succeeds("the run", _raise, error)) if wrapped else (lambda context: _raise(error))
    result = run(body)
    assert result.verdict is Verdict.ERROR
    assert result.reason.startswith("could not set up: this KVM cannot run the guest's code")


def test_a_call_of_the_process_that_fails_is_an_error_that_names_it(run: Callable[..., ClauseResult]) -> None:
    def body(context: Context) -> None:
        os.close(os.open("/proc/no-such-file", os.O_RDONLY))

    result = run(body)
    assert result.verdict is Verdict.ERROR
    assert result.reason.startswith("could not set up: ENOENT from `os.close(os.open(")


@pytest.mark.parametrize(
    "body",
    [lambda context: None, lambda context: no_difference("registers", [], compared=0)],
    ids=["no assertion", "nothing compared"],
)
def test_a_clause_that_looked_at_nothing_is_a_skip(run: Callable[..., ClauseResult], body: Body) -> None:
    result = run(body)
    assert result.verdict is Verdict.SKIP
    assert result.looks == 0 and "nothing" in result.reason
    assert run(body, info=True).verdict is Verdict.INFO


def test_a_result_tells_how_many_things_were_looked_at(run: Callable[..., ClauseResult]) -> None:
    def body(context: Context) -> None:
        equal("a", 1, 1)
        refused("b", errno.EINVAL, _kvm)
        refused_indicative(context, "c", errno.EPERM, _kvm)
        no_difference("d", [], compared=7)
        with judged("e"):
            pass

    result = run(body)
    assert (result.verdict, result.looks) == (Verdict.PASS, 11)
    assert result.to_json()["looks"] == 11
    assert run(body).looks == 11, "each run counts its own"


def test_another_errno_than_an_indicative_one_is_a_drift_of_a_pass(run: Callable[..., ClauseResult]) -> None:
    result = run(lambda context: refused_indicative(context, "c", errno.EPERM, _kvm))
    assert (result.verdict, result.notes) == (Verdict.PASS, [])
    assert result.drifts == ["c: expected EPERM, observed KVM_SET_XCRS failed with EINVAL"]


def test_a_skip_of_the_clauses_own_stays_a_skip(run: Callable[..., ClauseResult]) -> None:
    result = run(lambda context: _raise(Skipped("the ring has 3 entries, 4 are needed")))
    assert (result.verdict, result.reason) == (Verdict.SKIP, "the ring has 3 entries, 4 are needed")
