# SPDX-License-Identifier: Apache-2.0
"""Every clause can fail: for each there is a lying kernel, and the clause notices it."""

from __future__ import annotations

import pytest

from tests.mutations.check import Outcome, check_all
from tests.mutations.registry import all_mutations
from tests.patience import TIME_SCALE
from vmm.arch import ARCHITECTURE
from vmm.conformance.registry import all_clauses
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


def _line(outcome: Outcome) -> str:
    verdicts = f"{outcome.honest} honestly, {outcome.lying} with the lie"
    return f"{outcome.clause}: {outcome.mutation} ({verdicts}) {outcome.detail}"


@pytest.mark.kvm
def test_every_lie_is_noticed(kvm: Kvm) -> None:
    # Machines under load are slow, not wrong.
    outcomes = list(check_all(all_mutations(), time_scale=TIME_SCALE))
    unnoticed = [_line(outcome) for outcome in outcomes if outcome.outcome == "unnoticed"]
    assert not unnoticed, "lies that no clause noticed:\n" + "\n".join(unnoticed)
    usable = [outcome for outcome in outcomes if outcome.outcome == "noticed"]
    unusable = sorted({f"{o.clause} is {o.honest}: {o.detail}" for o in outcomes if o.outcome == "unusable"})
    assert len(usable) >= _USABLE[ARCHITECTURE], (
        f"only {len(usable)} of {len(outcomes)} lies could be judged here:\n" + "\n".join(unusable)
    )
