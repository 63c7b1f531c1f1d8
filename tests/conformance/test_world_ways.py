# SPDX-License-Identifier: Apache-2.0
"""Ways through KVM: each names every field that a KVM loses on it, and the guest that goes them changes none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import pytest

from tests.mutations.lies import COMPLETE, RUN, once
from vmm.arch import ARCHITECTURE
from vmm.conformance.context import Context, Options
from vmm.conformance.expect import Skipped, Violation
from vmm.conformance.needs import unmet
from vmm.conformance.registry import Clause, all_clauses
from vmm.kvm.ioctl import Interposer, interpose
from vmm.kvm.system import Kvm
from vmm.probe.host import measure

pytestmark = pytest.mark.skipif(ARCHITECTURE != "x86", reason="the ways of x86")

if ARCHITECTURE == "x86":
    from tests.mutations.world import way_shows
    from vmm.state.x86.world.tables import TABLES, VIEWS

Behind = Callable[[Interposer], Interposer]
# Where each way begins; a run is RUN.
MSI = "KVM_SIGNAL_MSI"
BEGINNINGS: dict[str, Behind] = {
    "none": partial(once, COMPLETE, refused=True),
    "init": partial(once, MSI),
    "init-in-run": partial(once, MSI),
    "sipi": lambda lie: once(MSI, once(MSI, lie)),
    "sipi-in-run": lambda lie: once(MSI, once(MSI, lie)),
    "smm": partial(once, "KVM_SMI"),
    "smm-32": partial(once, "KVM_SMI"),
}
WAYS = [clause for clause in all_clauses("x86") if clause.id.startswith("world.way-")]
# What the clauses themselves look at to know whether the vCPU is there yet.
LOOKED_AT = ("REGS.rip",)
# What a vCPU that has not run is only held against what was written: a KVM_RUN may change it.
WRITTEN = {"world.way-none": ("XSAVE.FP.FOP", "XSAVE.FP.FIP", "XSAVE.FP.FDP")}


@pytest.mark.kvm
@pytest.mark.parametrize("clause", WAYS, ids=lambda clause: clause.id)
def test_every_field_that_a_way_loses_is_named(kvm: Kvm, clause: Clause) -> None:
    host = measure(kvm)
    if reason := unmet(clause.needs, host):
        pytest.skip(reason)
    behind = BEGINNINGS.get(clause.id.removeprefix("world.way-"), partial(once, RUN))
    with ExitStack() as stack:
        context = Context(host, Options(time_scale=10), stack)
        try:
            with interpose(behind(way_shows((*TABLES, *VIEWS), LOOKED_AT))), pytest.raises(Violation) as found:
                clause.function(context)
        except Skipped as skipped:
            pytest.skip(str(skipped))
    named = [one.what.split(" ")[0] for one in found.value.fields]
    assert len(named) == len(set(named))
    assert len(named) == context.coverage["judged"] - len(LOOKED_AT) - len(WRITTEN.get(clause.id, ()))
