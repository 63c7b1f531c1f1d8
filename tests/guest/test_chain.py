# SPDX-License-Identifier: Apache-2.0
"""The chain payload: guests reach the digest that Python computes, and a changed bit of any register changes it."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.guest import chain_changes
from tests.patience import MACHINE
from vmm.arch import module
from vmm.arm64 import chain as arm64
from vmm.guest.chain import LINE, WINDOW_LINES, WORD, Chain
from vmm.kvm.exits import Budget
from vmm.kvm.system import Kvm
from vmm.x86 import chain as x86

own = module("chain")
_HERE = Path(__file__).resolve().parent
_NUMBERS = st.integers(0, WORD)
# What guests came to, on hardware or in an emulated machine: a chain saved by an earlier version has to go on.
_KNOWN: dict[tuple[ModuleType, str, int, int], str] = {
    (x86, "avx512", 1000, 7): "c2975136b294f7dbeaf77fc98b5725f2",
    (x86, "sse+pku+shstk", 20, 0x123456789ABCDEF0): "e4b60560f10cef87b1fb3ff13480331c",
    (x86, "amx+pku+cet+xfd", 20, 0x123456789ABCDEF0): "c7bd8d0b1fc7913e4e87c683e78a9caf",
    (arm64, "fpsimd", 1000, 3): "dc617ccf56466e48ee73de0198428ddd",
    (arm64, "sve384", 40, 0x123456789ABCDEF0): "ea2efb274696b111c12582d1949d0aee",
    (arm64, "sve512", 1000, 3): "7d89dad7d13a1deec60602ce4bce4288",
}
# Fewer changes than these were not made of every register: how many a level of each kind has on any host.
_LEAST = {"sse": 130, "avx": 163, "avx512": 246, "amx": 370, "fpsimd": 156, "sve": 205}


class _Plain(Chain):
    """A chain whose registers take every value."""

    def _registers(self, words: list[int]) -> list[int]:
        return words


def _end(lines: int, seed: int, steps: int, change: tuple[int, int] | None = None) -> bytes:
    chain = _Plain(seed, 0, lines)
    if change is not None:
        word, bit = change
        chain._image[word] ^= 1 << bit
    for _ in range(steps):
        chain.tick()
    return chain.final()


@given(st.integers(1, 4), _NUMBERS, st.integers(1, 5), st.data())
def test_no_bit_of_any_word_is_lost_in_the_hash(lines: int, seed: int, steps: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, LINE * lines - 1)), data.draw(st.integers(0, 63))
    assert _end(lines, seed, steps, place) != _end(lines, seed, steps)


@given(_NUMBERS, st.integers(0, LINE * WINDOW_LINES - 1), st.integers(0, 63))
def test_no_bit_of_the_memory_is_lost_in_the_hash(seed: int, word: int, bit: int) -> None:
    chain = _Plain(seed, 0, 1)
    before = chain.final()
    assert chain.final() == before, "asking twice changes nothing"
    chain._window[word] ^= 1 << bit
    assert chain.final() != before


@pytest.mark.parametrize(("arch", "level", "steps", "seed"), _KNOWN)
def test_the_digest_of_an_earlier_version_is_the_same(arch: ModuleType, level: str, steps: int, seed: int) -> None:
    assert arch.reference(level, steps, seed).hex() == _KNOWN[arch, level, steps, seed]


@pytest.mark.parametrize("arch", [x86, arm64], ids=["x86", "arm64"])
def test_levels_that_cover_different_state_have_different_digests(arch: ModuleType) -> None:
    levels = arch.LEVELS
    digests = {arch.reference(level, 3, 1) for level in levels}
    assert len(digests) == len(levels) == len(set(levels))


@pytest.mark.parametrize("arch", [x86, arm64], ids=["x86", "arm64"])
def test_a_level_comes_back_as_its_name(arch: ModuleType) -> None:
    for level in arch.LEVELS:
        assert str(arch.parse(level)) == level
    for wrong in ("", "AVX", "avx+xfd", "avx+cet+shstk", "amx+cet+pku", "sve", "sve96", "sve4096", "sse+"):
        with pytest.raises(ValueError, match="is not a level of the chain payload: take one of"):
            arch.parse(wrong)


def test_the_lengths_that_a_chain_uses_do_not_depend_on_the_host() -> None:
    lengths = {str(bits): arm64.parse(f"sve{bits}").lengths for bits in (128, 256, 384, 512, 1152, 2048)}
    assert lengths == {
        "128": (1,), "256": (1, 2), "384": (1, 2, 3), "512": (1, 2, 4), "1152": (1, 2, 4, 8, 9),
        "2048": (1, 2, 4, 8, 16),
    }  # fmt: skip


def test_a_wrong_number_does_not_reach_the_kernel(kvm: Kvm) -> None:
    level = own.LEVELS[0]
    for steps, seed in ((-1, 0), (WORD + 1, 0), (0, -1), (0, WORD + 1)):
        with pytest.raises(ValueError, match="64 bits"):
            own.make_guest(kvm, level, steps, seed)
    with pytest.raises(ValueError, match="not a level"):
        own.make_guest(kvm, "avx3", 1, 1)


def test_the_best_level_is_the_last(kvm: Kvm) -> None:
    levels = own.available(kvm)
    assert levels[0] == own.LEVELS[0] and own.best(kvm) == levels[-1]
    assert levels == [level for level in own.LEVELS if level in levels]


def _here(kvm: Kvm) -> list[str]:
    """The levels of this host, those with tiles only where no earlier guest of this process is in the way."""
    return [level for level in own.available(kvm) if not level.startswith("amx")]


def test_the_guest_computes_what_python_computes(kvm: Kvm) -> None:
    for level, (steps, seed) in itertools.product(_here(kvm), ((0, 0), (1, WORD), (2, 5), (37, 1 << 63), (1000, 9))):
        with own.make_guest(kvm, level, steps, seed) as guest:
            assert guest.finish(guest.resume()) == guest.DONE
            assert own.digest(guest) == own.reference(level, steps, seed), (level, steps, seed)
            assert own.progress(guest) == steps


def test_the_running_digest_is_right_at_every_tick(kvm: Kvm) -> None:
    for level in _here(kvm):
        with own.make_guest(kvm, level, 50, 4) as guest:
            for tick, expected in zip(range(1, 51), own.running(level, 4), strict=False):
                assert guest.resume(ticks=1) == Budget(1)
                assert (own.progress(guest), own.digest(guest)) == (tick, expected), level
            assert guest.finish(guest.resume()) == guest.DONE
            assert own.digest(guest) == own.reference(level, 50, 4)


def test_a_guest_that_computes_rubbish_does_not_pass(kvm: Kvm) -> None:
    """The multiplier in the guest's code is changed by one bit: the guest is consistent, and wrong."""
    level = own.LEVELS[0]
    multiplier = (0x9E3779B97F4A7C15).to_bytes(8, "little")
    with own.make_guest(kvm, level, 10, 1) as guest:
        start, length = 1 << 20, guest.payload.end - (1 << 20)
        image = guest.memory.read(start, length)
        assert multiplier in image
        guest.memory.write(start, image.replace(multiplier, multiplier[:7] + b"\x9f"))
        assert guest.finish(guest.resume()) == guest.DONE
        assert own.digest(guest) != own.reference(level, 10, 1)


def test_no_registers_are_left_in_memory_at_a_tick(kvm: Kvm) -> None:
    for level in _here(kvm):
        with own.make_guest(kvm, level, 3, 6) as guest:
            guest.resume(ticks=2)
            for name in ("image", "lanes"):
                size = guest.payload.symbol("IMAGE_SIZE") if name == "image" else 64
                assert not any(guest.memory.read(guest.payload.symbol(name), size)), (level, name)


def test_every_changed_register_is_noticed(kvm: Kvm) -> None:
    """Every register of every level: a bit changed, lost with its component, exchanged with its neighbour."""
    for level in _here(kvm):
        _judge(chain_changes.check(kvm, level, 1))


def _judge(result: dict[str, object]) -> None:
    level = str(result["level"])
    least = max(number for kind, number in _LEAST.items() if level.startswith(kind))
    assert result["unnoticed"] == [] and result["rewritten"] and result["long"], result
    assert isinstance(result["made"], int) and result["made"] >= least, result


def test_what_runs_in_a_machine_imports_nothing_of_the_tests() -> None:
    # A machine has the package and the source of chain_changes.py, and nothing else of this tree.
    assert not re.search(r"^\s*(from|import) tests\b", (_HERE / "chain_changes.py").read_text(), re.MULTILINE)


def _results(command: list[str], levels: list[str]) -> None:
    """Run chain_changes.py by ``command`` for some levels and judge what it prints."""
    source = (_HERE / "chain_changes.py").read_text()
    done = subprocess.run(
        [*command, "-c", source, *levels], capture_output=True, text=True, timeout=2 * MACHINE, check=False
    )
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [result["level"] for result in results] == levels, done.stdout[-2000:] + done.stderr[-2000:]
    for result in results:
        _judge(result)


def test_every_changed_tile_is_noticed(kvm: Kvm) -> None:
    """In a process of its own, because this one has had guests without the permission for tiles."""
    levels = [level for level in own.available(kvm) if level.startswith("amx")]
    if not levels:
        pytest.skip(f"needs a KVM with tiles for guests: the levels here are {', '.join(own.available(kvm))}")
    _results([sys.executable], [levels[0], levels[-1]])


# The machines, what they are asked for beyond the defaults, and the levels that they check. Of levels that run the
# same code of the payload these have the most state, or vectors of lengths that are no powers of two.
_MACHINES = {
    "svm": ((), ("sse", "avx+pku")),
    "amx": ((), ("amx+pku+cet+xfd",)),
    "sve": ((), ("fpsimd", "sve384")),
    "sve2048": (("--cpu", "vq=1,2,4,8,16", "--mode", "nvhe"), ("sve2048",)),
}


@pytest.mark.machine
@pytest.mark.parametrize("machine", _MACHINES)
def test_every_changed_register_is_noticed_in_a_machine(machine: str) -> None:
    options, levels = _MACHINES[machine]
    lab = [
        sys.executable,
        str(_HERE.parents[1] / "scripts" / "lab"),
        machine[:3],
        "--timeout",
        str(MACHINE),
        *options,
    ]
    _results([*lab, "--", "python3"], list(levels))
