# SPDX-License-Identifier: Apache-2.0
"""Runs one clause in this process and turns whatever happens into a result."""

from __future__ import annotations

import time
import traceback
from contextlib import ExitStack

from vmm.conformance.context import Context, Options
from vmm.conformance.expect import Skipped, TimedOut, Violation, looks
from vmm.conformance.model import ClauseResult, Verdict
from vmm.conformance.needs import unmet
from vmm.conformance.registry import Clause
from vmm.guest.base import GuestError
from vmm.kvm import ioctl as door
from vmm.kvm.exits import Deadline, InternalError
from vmm.kvm.ioctl import HostError, KvmError, Refused, Trace, errno_name
from vmm.kvm.system import KvmUnavailable
from vmm.probe.host import Host

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
    result.notes, result.drifts = context.notes, context.drifts
    result.looks, result.coverage = looks.count, context.coverage
    if result.verdict not in (Verdict.PASS, Verdict.SKIP, Verdict.INFO):
        result.source = clause.source
        result.trace += trace.lines()
    return result


def _judge(clause: Clause, context: Context, result: ClauseResult) -> None:
    looks.count = 0
    try:
        clause.function(context)
        if clause.info:
            result.verdict = Verdict.INFO
        elif not looks.count:
            result.verdict, result.reason = Verdict.SKIP, "this host has nothing that the clause could look at"
    except Violation as violation:
        result.verdict = Verdict.INFO if clause.info else Verdict.FAIL
        result.what, result.finding = violation.what, violation.finding
        result.expected, result.observed = violation.expected, violation.observed
        result.fields = [finding._asdict() for finding in violation.fields]
    except Skipped as skipped:
        result.verdict, result.reason = Verdict.SKIP, str(skipped)
    except TimedOut as error:
        result.verdict, result.reason = Verdict.TIMEOUT, str(error)
    except GuestError as error:
        _guest_failed(result, error)
    except KvmUnavailable as error:
        result.verdict, result.reason = Verdict.ERROR, str(error)
    except (KvmError, Refused) as error:
        _not_set_up(result, str(error))
    except OSError as error:
        _not_set_up(result, _os_error(error), traceback.format_exc())
    except Exception as error:
        result.verdict, result.reason = Verdict.ERROR, f"{type(error).__name__}: {error}"
        result.trace = traceback.format_exc().splitlines()


def _os_error(error: OSError) -> str:
    """Return what this process could not do: the call as it stands in the source, the errno by name, its text."""
    if isinstance(error, HostError):
        return str(error)
    (frame,) = traceback.extract_tb(error.__traceback__)[-1:]
    return f"{errno_name(error.errno or 0)} from `{frame.line or frame.name}`: {error.strerror or error}"


def _guest_failed(result: ClauseResult, error: GuestError) -> None:
    if isinstance(error.exit, Deadline):
        result.verdict, result.reason = Verdict.TIMEOUT, str(error)
    elif isinstance(error.exit, InternalError):
        _not_set_up(result, f"this KVM cannot run the guest's code: {error}")
    else:
        _not_set_up(result, str(error))


def _not_set_up(result: ClauseResult, why: str, trace: str = "") -> None:
    """What the clause needed before it could judge did not come about: nothing is known of what it states."""
    result.verdict, result.reason = Verdict.ERROR, f"could not set up: {why}"
    result.trace = trace.splitlines()
