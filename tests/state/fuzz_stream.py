# SPDX-License-Identifier: Apache-2.0
"""Changed streams, many of them: each ends in a clean refusal or in a state that is whole.

    python -m tests.state.fuzz_stream 200000 --seed 7

counts how each ended. Anything else fails: another exception than StreamError, more than 5 seconds of processor
time, more than 64 MiB of memory for one. ``--keep FOLDER`` leaves those that failed there.
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.state.state_samples import SAMPLES
from tests.state.stream_mutations import mutate
from vmm.cli.inspect import describe
from vmm.state.errors import StreamError
from vmm.state.explain import explain
from vmm.state.stream.container import Limits
from vmm.state.stream.decode import read_state
from vmm.state.stream.encode import write_state
from vmm.state.validate import validate
from vmm.state.value import VmState

__all__ = ["Outcome", "Report", "corpus", "judge", "run"]

_LIMITS = Limits(memory=32 << 20)
_SECONDS = 5.0
_MEMORY = 64 << 20


class _TooSlow(BaseException):
    """No handler of the code under test may take this for its own."""


@dataclass(frozen=True)
class Outcome:
    """How one stream ended: ``kind`` is damaged or invalid (refused), equal, valid; or failed."""

    kind: str
    detail: str = ""


@dataclass
class Report:
    """What became of all streams."""

    kinds: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    memory: int = 0


def corpus() -> list[tuple[bytes, VmState]]:
    """Return valid streams with their states: those in tests/data/streams, samples without and with real fields."""
    found = []
    for path in sorted((Path(__file__).parents[1] / "data" / "streams").glob("*.vmst")):
        data = path.read_bytes()
        found.append((data, read_state(io.BytesIO(data))))
    for sample in SAMPLES.values():
        for chosen in (None, explain):
            file = io.BytesIO()
            write_state(file, sample, chosen)
            found.append((file.getvalue(), sample))
    return found


def judge(data: bytes, original: VmState) -> Outcome:
    """Read, validate and inspect one stream."""
    try:
        found = read_state(io.BytesIO(data), explain, _LIMITS)
    except StreamError as error:
        _inspect(data)
        return Outcome("damaged", str(error))
    _inspect(data)
    try:
        validate(found)
    except StreamError as error:
        return Outcome("invalid", str(error))
    if found == original:
        return Outcome("equal")
    file = io.BytesIO()
    write_state(file, found)
    if read_state(io.BytesIO(file.getvalue()), limits=_LIMITS) != found:
        return Outcome("failed", "a state that was accepted does not come back")
    return Outcome("valid")


def _inspect(data: bytes) -> None:
    with suppress(StreamError):
        describe(io.BytesIO(data))


def _alarm(number: int, frame: object) -> None:
    raise _TooSlow


def _timed(data: bytes, original: VmState) -> tuple[Outcome, float]:
    began = time.process_time()  # a shared machine may stop us for longer
    signal.setitimer(signal.ITIMER_PROF, _SECONDS)
    try:
        outcome = judge(data, original)
    except _TooSlow:
        outcome = Outcome("failed", f"more than {_SECONDS} seconds")
    except Exception as error:  # the very thing that must not happen
        outcome = Outcome("failed", f"{type(error).__name__}: {error}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return outcome, time.process_time() - began


def _peak(*, forget: bool = False) -> int:
    """The most memory in bytes that this process had; ``forget`` begins anew with what it has."""
    if forget:
        with suppress(OSError):  # a kernel without CONFIG_PROC_PAGE_MONITOR: then since the process began
            Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def run(number: int, seed: int, keep: Path | None = None) -> Report:
    """Try ``number`` streams; the same seed gives the same ones."""
    report, streams = Report(), corpus()
    before = signal.signal(signal.SIGPROF, _alarm)
    try:
        for index in range(number):
            source = random.Random(f"{seed}:{index}")
            original, state = source.choice(streams)
            names, data = mutate(source, original)
            base = _peak(forget=True)  # mutating takes memory too
            outcome, seconds = _timed(data, state)
            growth = _peak() - base
            if growth > _MEMORY and outcome.kind != "failed":
                outcome = Outcome("failed", f"{growth >> 20} MiB of memory")
            report.kinds[outcome.kind] += 1
            report.slowest, report.memory = max(report.slowest, seconds), max(report.memory, growth)
            if outcome.kind in ("damaged", "invalid"):
                report.refusals[_reason(outcome.detail)] += 1
            if outcome.kind == "failed":
                report.failures.append(f"{seed}:{index} ({names}): {outcome.detail}")
                if keep is not None:
                    (keep / f"{seed}-{index}.vmst").write_bytes(data)
    finally:
        signal.signal(signal.SIGPROF, before)
    return report


def _reason(sentence: str) -> str:
    """A refusal without its numbers and names, so that those of a kind are counted together."""
    words = sentence.split(": ", 1)[-1].split()
    return " ".join(word for word in words if word.isalpha())[:60]


def main() -> int:
    """Run from the command line; 0 if nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("number", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--reasons", action="store_true", help="show how often each kind of refusal was")
    arguments = parser.parse_args()
    address_space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 4 * _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    began = time.monotonic()
    report = run(arguments.number, arguments.seed, arguments.keep)
    print(f"{arguments.number} streams in {time.monotonic() - began:.0f} s: {dict(report.kinds)}")
    print(f"slowest {report.slowest:.3f} s, most memory for one {report.memory >> 20} MiB")
    print(f"{len(report.refusals)} kinds of refusals")
    if arguments.reasons:
        for reason, count in report.refusals.most_common():
            print(f"{count:8} {reason}")
    for failure in report.failures[:50]:
        print(f"FAILED {failure}")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
