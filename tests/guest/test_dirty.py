# SPDX-License-Identifier: Apache-2.0
"""The dirty payload: its pages hold what Python says, the dirty log names them, and an idle guest dirties nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.guest import dirty_passes
from tests.machines.machines import run_lab
from vmm.arch import ARCHITECTURE, module
from vmm.kvm.exits import Budget, Deadline
from vmm.kvm.memory import PAGE_SIZE
from vmm.kvm.system import Kvm

chain = module("chain")
_HERE = Path(__file__).resolve().parent
_WINDOW = 2 << 20
_CPL = 3 if ARCHITECTURE == "x86" else 0
_PLACES = st.tuples(
    st.integers(0, (1 << 28) - 1).map(lambda page: page * dirty_passes.PAGE), st.integers(1, (1 << 24) - 1)
)


@given(_PLACES, _PLACES)
def test_no_two_pages_or_passes_have_the_same_word(first: tuple[int, int], second: tuple[int, int]) -> None:
    assert (dirty_passes.word(*first) == dirty_passes.word(*second)) == (first == second)


def test_a_page_before_the_first_pass_is_zero() -> None:
    assert dirty_passes.page(_WINDOW, 0) == bytes(4096)
    assert dirty_passes.page(_WINDOW, 1) == dirty_passes.word(_WINDOW, 1).to_bytes(8, "little") * 512


def test_a_pass_leaves_what_python_says(kvm: Kvm) -> None:
    entries = [entry for entry in dirty_passes.entries(kvm) if entry != "dirty_tile"]
    assert entries
    for entry in entries:
        _judge(dirty_passes.check(kvm, entry))


def _judge(result: dict[str, object]) -> None:
    assert result["wrong"] == [] and result["ticks"] == 14, result


def test_an_endless_guest_does_not_end(kvm: Kvm) -> None:
    with chain.configured(kvm, chain.LEVELS[0], dirty_passes.PAYLOAD) as guest:
        guest.prepare("dirty", _WINDOW, 4, 1, 0, 4, dirty_passes.PAGE, privilege=_CPL)
        for number in (1, 2, 3, 50):
            guest.resume(ticks=number - guest.mailbox.read("values"))
            assert guest.mailbox.read("values") == number
            assert guest.memory.read(_WINDOW + 3 * dirty_passes.PAGE, dirty_passes.PAGE) == dirty_passes.page(
                _WINDOW + 12288, number
            )


def test_an_idle_guest_dirties_no_memory_and_ends(kvm: Kvm) -> None:
    with chain.configured(kvm, chain.LEVELS[0], dirty_passes.PAYLOAD) as guest:
        guest.prepare("idle", 100, 3, privilege=_CPL)
        assert guest.resume(ticks=2) == Budget(2)
        guest.complete()
        guest.memory.register(log_dirty=True)
        assert guest.resume(ticks=1) == Budget(1)
        assert not any(page >= _WINDOW // PAGE_SIZE for page in guest.memory.dirty_pages())
        assert guest.finish(guest.resume()) == guest.DONE
        guest.prepare("idle", 100, 0, privilege=_CPL)
        assert guest.resume(ticks=50) == Budget(50)
        guest.prepare("idle", 0, 1, privilege=_CPL)
        assert guest.resume(0.2) == Deadline()


@pytest.mark.machine
@pytest.mark.parametrize(("machine", "entries"), [("amx", 3), ("sve", 2)])
def test_a_pass_leaves_what_python_says_in_a_machine(machine: str, entries: int) -> None:
    source = (_HERE / "dirty_passes.py").read_text()
    done = run_lab(machine, "--", "python3", "-c", source)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(results) == entries, done.stdout[-2000:] + done.stderr[-2000:]
    for result in results:
        _judge(result)
