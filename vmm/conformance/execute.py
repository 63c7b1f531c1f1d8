# SPDX-License-Identifier: Apache-2.0
"""Runs one clause in this process and turns whatever happens into a result."""

from __future__ import annotations

import time
import traceback
from contextlib import ExitStack

from vmm import ioctl as door
from vmm.conformance.context import Context, Options
from vmm.conformance.expect import Skipped, Violation
from vmm.conformance.host import Host
from vmm.conformance.model import ClauseResult, Verdict
from vmm.conformance.needs import unmet
from vmm.conformance.registry import Clause
from vmm.exits import Deadline
from vmm.ioctl import KvmError, Refused, Trace
from vmm.system import KvmUnavailable

__all__ = ["execute", "skip"]

_TRACE_LENGTH = 40


def skip(clause: Clause, host: Host, options: Options) -> ClauseResult | None:
    """Return the result of a clause that does not apply here, with the measured reason, or None if it does."""
    reason = unmet(clause.needs, host)
    if clause.dangerous and not options.dangerous:
        reason = "could harm an unfixed host kernel: run it with --dangerous"
    return ClauseResult(clause.id, Verdict.SKIP, clause.statement, reason=reason) if reason else None


def execute(
    clause: Clause, host: Host, options: Options, *, interposer: door.Interposer | None = None
) -> ClauseResult:
    """Run ``clause`` and judge it; ``interposer`` stands between it and the kernel.

    The caller has to be a process that has created no vCPU and does not mind if this one does.
    """
    skipped = skip(clause, host, options)
    if skipped:
        return skipped
    result = ClauseResult(clause.id, Verdict.PASS, clause.statement)
    trace = Trace(_TRACE_LENGTH)
    started = time.perf_counter()
    with ExitStack() as stack:
        stack.callback(door.set_trace, None)
        door.set_trace(trace)
        if interposer:
            stack.enter_context(door.interpose(interposer))
        context = Context(host, options, stack)
        _judge(clause, context, result)
    result.seconds = round(time.perf_counter() - started, 6)
    result.notes = context.notes
    if result.verdict not in (Verdict.PASS, Verdict.SKIP, Verdict.INFO):
        result.trace += trace.lines()
    return result


def _judge(clause: Clause, context: Context, result: ClauseResult) -> None:
    try:
        clause.function(context)
        if clause.info:
            result.verdict = Verdict.INFO
    except Violation as violation:
        result.verdict = Verdict.INFO if clause.info else Verdict.FAIL
        result.what, result.finding = violation.what, violation.finding
        result.expected, result.observed = violation.expected, violation.observed
    except Skipped as skipped:
        result.verdict, result.reason = Verdict.SKIP, str(skipped)
    except KvmError as error:
        _fail(result, error.call, "success", str(error), "rejected")
    except Refused as error:
        _fail(result, "what KVM lists or promised", "to be there", str(error), "rejected")
    except KvmUnavailable as error:
        result.verdict, result.reason = Verdict.ERROR, str(error)
    except Exception as error:
        _other(result, error)


def _other(result: ClauseResult, error: Exception) -> None:
    exit = getattr(error, "exit", None)  # a GuestError of any architecture
    if isinstance(exit, Deadline):
        result.verdict, result.reason = Verdict.TIMEOUT, str(error)
    elif exit is not None:
        _fail(result, "the guest", "the payload's event", str(error), "mismatch")
    else:
        result.verdict = Verdict.ERROR
        result.reason = f"{type(error).__name__}: {error}"
        result.trace = traceback.format_exc().splitlines()


def _fail(result: ClauseResult, what: str, expected: str, observed: str, finding: str) -> None:
    result.verdict = Verdict.FAIL
    result.what, result.expected, result.observed, result.finding = what, expected, observed, finding
