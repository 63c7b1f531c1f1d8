# SPDX-License-Identifier: Apache-2.0
"""Judges mutations: the honest run of the clause first, then the run with the lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.mutations.registry import Mutation, modules
from vmm.conformance.context import Options
from vmm.conformance.model import ClauseResult, Verdict
from vmm.conformance.runner import Job, Runner

__all__ = ["Outcome", "check_all"]

_FACTORY = "tests.mutations.registry:make"
_CAN_BE_JUDGED = (Verdict.PASS, Verdict.XPASS, Verdict.INFO, Verdict.KNOWN)


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
    elif lying.verdict in (Verdict.FAIL, Verdict.TIMEOUT):
        # A KNOWN excuses its own finding and no other.
        noticed = True
    else:
        return _unusable(mutation, honest)
    missed = "error" if lying.verdict is Verdict.ERROR else "unnoticed"
    outcome = "noticed" if noticed else missed
    return Outcome(mutation.clause, mutation.name, outcome, str(honest.verdict), str(lying.verdict), _detail(lying))


def _unusable(mutation: Mutation, honest: ClauseResult) -> Outcome:
    return Outcome(mutation.clause, mutation.name, "unusable", str(honest.verdict), "", honest.reason)


def _detail(result: ClauseResult) -> str:
    return f"{result.what}: expected {result.expected}, observed {result.observed} {result.reason}".strip()


class _Judges:
    """The runs of clauses, honest and lied to."""

    def __init__(self, runner: Runner, *, dangerous: bool) -> None:
        self._runner, self._dangerous = runner, dangerous

    def honest(self, clauses: Iterable[str], scale: float) -> dict[str, ClauseResult]:
        """Return the result of each clause on the honest kernel."""
        options = Options(time_scale=scale, dangerous=self._dangerous)
        return {r.id: r for r in self._runner.results(Job.of(clause, options) for clause in sorted(set(clauses)))}

    def lied_to(self, chosen: Sequence[Mutation], scale: float) -> dict[Mutation, ClauseResult]:
        """Return the result of each lie's clause with the lie."""
        options = Options(time_scale=scale, dangerous=self._dangerous)
        jobs = [Job.of(m.clause, options, _FACTORY, m.clause, m.name) for m in chosen]
        return dict(zip(chosen, self._runner.results(jobs), strict=True))

    def in_time(self, chosen: Sequence[Mutation], scale: float) -> dict[Mutation, ClauseResult]:
        """Return what lied_to does, without a wait of many times the usual for what a lie has made hang.

        A clause that does not end in the usual time counts as one if the honest kernel needs no more than that now;
        where it does, the machine is slow, and the lie has as long as its clause had.
        """
        found = self.lied_to(chosen, 1.0)
        late = [mutation for mutation, result in found.items() if result.verdict is Verdict.TIMEOUT]
        now = self.honest((mutation.clause for mutation in late), 1.0)
        slow = [mutation for mutation in late if now[mutation.clause].verdict is Verdict.TIMEOUT]
        return {**found, **self.lied_to(slow, scale)}


def check_all(
    mutations: Iterable[Mutation], time_scale: float = 1.0, *, dangerous: bool = False
) -> Iterator[Outcome]:
    """Run each mutation's clause honestly (once), and with the lie where it can be judged; yield the outcomes.

    ``time_scale`` is of the honest runs: a machine under load is slow, not wrong.
    """
    chosen = list(mutations)
    with Runner(preload=modules()) as runner:
        judges = _Judges(runner, dangerous=dangerous)
        honest = judges.honest((mutation.clause for mutation in chosen), time_scale)
        usable = [mutation for mutation in chosen if honest[mutation.clause].verdict in _CAN_BE_JUDGED]
        lying = judges.in_time(usable, time_scale)
    for mutation in chosen:
        result = lying.get(mutation)
        told = honest[mutation.clause]
        yield _judge(mutation, told, result) if result else _unusable(mutation, told)
