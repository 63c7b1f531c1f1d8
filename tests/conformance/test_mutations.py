# SPDX-License-Identifier: Apache-2.0
"""Every clause can fail: for each there is a lying kernel, and the clause notices it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.mutations import check, registry
from tests.mutations.check import Outcome, check_all
from tests.mutations.lies import once, refuse
from tests.mutations.registry import Mutation, all_mutations, lies, make, mutation
from tests.patience import TIME_SCALE
from vmm.arch import ARCHITECTURE
from vmm.conformance.model import ClauseResult, Verdict
from vmm.conformance.registry import all_clauses
from vmm.conformance.runner import Job
from vmm.kvm.ioctl import Interposer
from vmm.kvm.system import Kvm

# So many lies any machine has to be able to judge. A kvm_pvm host and an AMD one without AMX judge about 370 each,
# one with AMX nearly all; an arm64 host without SVE about 120. Fewer than this means that the clauses did not run.
_USABLE = {"x86": 300, "arm64": 100}


@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_every_clause_has_a_mutation(arch: str) -> None:
    covered = {mutation.clause for mutation in all_mutations(arch)}
    missing = [clause.id for clause in all_clauses(arch) if clause.id not in covered]
    assert not missing, f"clauses that nobody has seen fail: {', '.join(missing)}"


@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_no_mutation_is_of_an_unknown_clause(arch: str) -> None:
    known = {clause.id for clause in all_clauses(arch)}
    unknown = [f"{m.name} of {m.clause}" for m in all_mutations(arch) if m.clause not in known]
    assert not unknown, f"mutations of clauses that do not exist: {', '.join(unknown)}"


@pytest.fixture
def mutations(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str, str], Mutation]:
    """The registry, to which a test may add."""
    all_mutations()  # whose modules are imported once, and have to register where that lasts
    copy = dict(registry._mutations)
    monkeypatch.setattr(registry, "_mutations", copy)
    return copy


def test_a_line_of_lies_is_a_mutation_of_each_clause(mutations: dict[tuple[str, str, str], Mutation]) -> None:
    before = set(mutations)
    lies("area.one", "area.two", first=lambda: refuse("KVM_RUN", 1), second=lambda: refuse("KVM_RUN", 2))
    added = {(ARCHITECTURE, clause, name) for clause in ("area.one", "area.two") for name in ("first", "second")}
    assert set(mutations) - before == added
    assert all((mutations[key].clause, mutations[key].name) == key[1:] for key in added)


def test_a_line_of_lies_makes_an_interposer_of_its_own_for_each_use(
    mutations: dict[tuple[str, str, str], Mutation],
) -> None:
    lies("area.one", it_runs_once=lambda: once("KVM_RUN", refuse("KVM_RUN", 1)))
    assert make("area.one", "it_runs_once") is not make("area.one", "it_runs_once")


def test_two_lies_about_a_clause_have_two_names(mutations: dict[tuple[str, str, str], Mutation]) -> None:
    @mutation("area.one")
    def it_does_not_run() -> Interposer:
        return refuse("KVM_RUN", 1)

    with pytest.raises(ValueError, match=r"area\.one has two mutations called it_does_not_run"):
        lies("area.one", it_does_not_run=lambda: refuse("KVM_RUN", 2))


class _Runner:
    """Stands in for a runner: its clause hangs when lied to, and without a lie on a machine so slow."""

    def __init__(self, slowness: float, honest: Verdict = Verdict.PASS) -> None:
        self._slowness, self._honest = slowness, honest
        self.ran: list[tuple[str, float]] = []

    def __enter__(self) -> _Runner:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def results(self, jobs: Iterable[Job]) -> list[ClauseResult]:
        return [self._result(job) for job in jobs]

    def _result(self, job: Job) -> ClauseResult:
        lie, scale = "".join(job["arguments"][1:]), job["options"]["time_scale"]
        self.ran.append((lie, scale))
        in_time = self._slowness <= scale and lie != "it_hangs"
        return ClauseResult(job["id"], (Verdict.FAIL if lie else self._honest) if in_time else Verdict.TIMEOUT, "x")


def _judged(monkeypatch: pytest.MonkeyPatch, runner: _Runner, lie: str) -> Outcome:
    monkeypatch.setattr(check, "Runner", lambda **_: runner)
    (outcome,) = check.check_all([Mutation("area.one", lie, lambda: refuse("KVM_RUN", 1))], time_scale=20.0)
    return outcome


def test_what_a_lie_makes_hang_is_noticed_in_the_usual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = _Runner(slowness=1.0)
    assert _judged(monkeypatch, runner, "it_hangs").outcome == "noticed"
    assert runner.ran == [("", 20.0), ("it_hangs", 1.0), ("", 1.0)]


@pytest.mark.parametrize(("lie", "verdict"), [("it_hangs", "TIMEOUT"), ("it_is_wrong", "FAIL")])
def test_on_a_slow_machine_a_lie_has_as_long_as_its_clause_had(
    monkeypatch: pytest.MonkeyPatch, lie: str, verdict: str
) -> None:
    runner = _Runner(slowness=10.0)
    outcome = _judged(monkeypatch, runner, lie)
    assert (outcome.outcome, outcome.lying) == ("noticed", verdict)
    assert runner.ran == [("", 20.0), (lie, 1.0), ("", 1.0), (lie, 20.0)]


@pytest.mark.parametrize("honest", [Verdict.SKIP, Verdict.FAIL, Verdict.ERROR])
def test_a_clause_that_does_not_pass_is_not_lied_to(monkeypatch: pytest.MonkeyPatch, honest: Verdict) -> None:
    runner = _Runner(1.0, honest)
    outcome = _judged(monkeypatch, runner, "it_is_wrong")
    assert (outcome.outcome, outcome.honest, runner.ran) == ("unusable", honest, [("", 20.0)])


def _line(outcome: Outcome) -> str:
    verdicts = f"{outcome.honest} honestly, {outcome.lying} with the lie"
    return f"{outcome.clause}: {outcome.mutation} ({verdicts}) {outcome.detail}"


@pytest.mark.kvm
def test_every_lie_is_noticed(kvm: Kvm) -> None:
    # Machines under load are slow, not wrong.
    outcomes = list(check_all(all_mutations(), time_scale=TIME_SCALE))
    unnoticed = [_line(outcome) for outcome in outcomes if outcome.outcome in ("unnoticed", "error")]
    assert not unnoticed, "lies that no clause noticed:\n" + "\n".join(unnoticed)
    usable = [outcome for outcome in outcomes if outcome.outcome == "noticed"]
    unusable = sorted({f"{o.clause} is {o.honest}: {o.detail}" for o in outcomes if o.outcome == "unusable"})
    assert len(usable) >= _USABLE[ARCHITECTURE], (
        f"only {len(usable)} of {len(outcomes)} lies could be judged here:\n" + "\n".join(unusable)
    )
