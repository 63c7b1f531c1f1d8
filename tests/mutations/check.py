# SPDX-License-Identifier: Apache-2.0
"""Judges mutations: the honest run of the clause first, then the run with the lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tests.mutations.registry import Mutation, modules
from vmm.conformance.context import Options
from vmm.conformance.model import ClauseResult, Verdict
from vmm.conformance.runner import Job, Runner

__all__ = ["Outcome", "check_all"]

_FACTORY = "tests.mutations.registry:make"


@dataclass(frozen=True, slots=True)
class Outcome:
    """``outcome`` is noticed, unnoticed, unusable where the honest kernel does not pass, or error.

    Of a clause that is known to fail, a lie that leads to another finding is noticed too.

    An error is an exception in the lie, or a clause that takes what it judges for set-up: ``detail`` says which.
    """

    clause: str
    mutation: str
    outcome: str
    honest: str
    lying: str
    detail: str

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as JSON values."""
        return asdict(self)


def _judge(mutation: Mutation, honest: ClauseResult, lying: ClauseResult) -> Outcome:
    if honest.verdict in (Verdict.PASS, Verdict.XPASS):
        # A clause that is known to fail here and yet passes fails as KNOWN when it is lied to.
        noticed = lying.verdict in (Verdict.FAIL, Verdict.KNOWN, Verdict.TIMEOUT)
    elif honest.verdict is Verdict.INFO:
        noticed = (lying.remarks, lying.observed) != (honest.remarks, honest.observed)
    elif honest.verdict is Verdict.KNOWN and lying.verdict in (Verdict.FAIL, Verdict.TIMEOUT):
        # A KNOWN excuses its own finding and no other.
        noticed = True
    else:
        return _outcome(mutation, "unusable", honest, lying, honest.reason)
    missed = "error" if lying.verdict is Verdict.ERROR else "unnoticed"
    return _outcome(mutation, "noticed" if noticed else missed, honest, lying, _detail(lying))


def _outcome(mutation: Mutation, outcome: str, honest: ClauseResult, lying: ClauseResult, detail: str) -> Outcome:
    return Outcome(mutation.clause, mutation.name, outcome, str(honest.verdict), str(lying.verdict), detail)


def _detail(result: ClauseResult) -> str:
    return f"{result.what}: expected {result.expected}, observed {result.observed} {result.reason}".strip()


def check_all(
    mutations: Iterable[Mutation], time_scale: float = 1.0, *, dangerous: bool = False
) -> Iterator[Outcome]:
    """Run each mutation's clause honestly (once) and with the lie, and yield the outcomes."""
    chosen = list(mutations)
    clauses = sorted({mutation.clause for mutation in chosen})
    options = Options(time_scale=time_scale, dangerous=dangerous)
    with Runner(preload=modules()) as runner:
        honest = {r.id: r for r in runner.results(Job.of(clause, options) for clause in clauses)}
        jobs = [Job.of(m.clause, options, _FACTORY, m.clause, m.name) for m in chosen]
        for mutation, lying in zip(chosen, runner.results(jobs), strict=True):
            yield _judge(mutation, honest[mutation.clause], lying)
