# SPDX-License-Identifier: Apache-2.0
"""``vmm roundtrip``: the live-migration round-trip check."""

from __future__ import annotations

import json
import sys

import click

from vmm.cli import guests
from vmm.cli.guests import Shape
from vmm.cli.options import Count, Places, Seconds, guest_options
from vmm.guest.architecture import chains
from vmm.kvm.system import Kvm
from vmm.state import hostile
from vmm.state.capture import capture
from vmm.state.roundtrip import HOPS, Report, RoundTripFailed, roundtrip

__all__ = ["command"]

_PAYLOAD = "chain"
_HOSTILE_STEPS = 20


def _levels(kvm: Kvm, wanted: tuple[str, ...]) -> list[str]:
    offered = chains().available(kvm)
    if "all" in wanted:
        return offered
    if wrong := [level for level in wanted if level not in offered]:
        raise click.UsageError(f"this host's levels are {', '.join(offered)}, and not {', '.join(wrong)}")
    return list(wanted) or offered[-1:]


def _line(report: Report) -> str:
    verdict = "same digest" if report.good else "NOT THE SAME"
    size = f", {report.stream_bytes} bytes each" if report.stream_bytes else ""
    found = "".join(f"\n    {difference}" for difference in report.differences)
    times = f"{report.median_ms:.2f} ms per migration (median), {report.seconds:.1f} s"
    return (
        f"{report.level}, {report.hop}: {report.rounds} migrations in {report.steps} steps: {verdict}, "
        f"{len(report.differences)} differences, {times}{size}"
        f"\n    expected {report.expected}, not moved {report.unmoved}, moved {report.digest or 'did not end'}{found}"
    )


def _one(
    kvm: Kvm, level: str, rounds: int, steps: int | None, seed: int, hop: str, timeout: float, terminal: bool,
    shape: Shape,
) -> Report:  # fmt: skip
    def progress(done: int) -> None:
        if terminal:
            print(f"\r{level}: {done} of {rounds} ", end="", file=sys.stderr, flush=True)

    total = steps or rounds * (1 + HOPS[hop].TICKS) + 1
    report = Report(level, hop, rounds, total, seed, vcpus=shape.vcpus)
    try:
        report = roundtrip(
            kvm, level, rounds=rounds, steps=total, seed=seed, hop=hop, timeout=timeout, progress=progress,
            regions=shape.regions, vcpus=shape.vcpus,
        )  # fmt: skip
    except RoundTripFailed as error:
        report.differences.append(str(error))
    if terminal:
        print("\r\033[K", end="", file=sys.stderr)
    return report


def _hostile(kvm: Kvm, level: str, seed: int, timeout: float) -> list[hostile.Outcome]:
    with chains().make_guest(kvm, level, _HOSTILE_STEPS, seed) as guest:
        guest.resume(timeout, ticks=_HOSTILE_STEPS // 2)
        state = capture(guest)
    return list(hostile.run(kvm, state))


@click.command("roundtrip")
@click.option("--rounds", type=Count(), default=100, show_default=True, help="Migrations.")
@click.option("--level", "levels", multiple=True, metavar="LEVEL",
              help="What is in its registers (default: the most there is); all; repeatable.")  # fmt: skip
@click.option("--steps", type=Count(), help="Steps of the chain (default: one more than there are moves).")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the register contents.")
@click.option("--hop", type=click.Choice(sorted(HOPS)), default="vm", show_default=True,
              help="Into the same vCPU, a new VM by way of a stream, or another process and back.")  # fmt: skip
@click.option("--process", is_flag=True, help="The same as --hop process.")
@click.option("--hostile", "with_hostile", is_flag=True, help="Try damaged streams and impossible states as well.")
@click.option("--verbose", "-v", is_flag=True, help="Show each hostile variant with its refusal.")
@click.option("--timeout", type=Seconds(0.001), default=60.0, show_default=True, help="Seconds from tick to tick.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines: one per report, then hostile variants.")
@guest_options
def command(
    rounds: int, levels: tuple[str, ...], steps: int | None, seed: int, hop: str, process: bool, with_hostile: bool,
    verbose: bool, timeout: float, as_json: bool, memory: Places | None, vcpus: int,
) -> int:  # fmt: skip
    """Migrate a guest many times, and see that it ends with the same digest as one that never moved.

    The guest's state lives only in its registers between two steps; each migration is also captured again and
    compared register by register, and moves to the next CPU. Registers that the guest does not use are given values
    before it runs, which have to be there at its end. Of several vCPUs each has its own digest. Exits with 1 if
    anything was lost or changed.
    """
    hop = "process" if process else hop
    if steps is not None and rounds * (1 + HOPS[hop].TICKS) > steps:
        raise click.UsageError(f"{rounds} migrations need more than {steps} steps: each is at a tick of its own")
    terminal = sys.stderr.isatty()
    shape = guests.shape(_PAYLOAD, memory, vcpus)
    failed = 0
    with Kvm() as kvm:
        chains().permit(kvm)
        chosen = _levels(kvm, levels)
        for level in chosen:
            report = _one(kvm, level, rounds, steps, seed, hop, timeout, terminal, shape)
            failed += not report.good
            print(json.dumps({"record": "roundtrip", **report.to_json()}) if as_json else _line(report), flush=True)
        outcomes = _hostile(kvm, chosen[-1], seed, timeout) if with_hostile else []
        for outcome in outcomes:
            failed += not outcome.good
            row = {"name": outcome.name, "good": outcome.good, "observed": outcome.observed}
            if as_json:
                print(json.dumps({"record": "hostile", **row}))
            elif verbose or not outcome.good:
                print(outcome)
        if with_hostile and not as_json:
            print(f"hostile: {len(outcomes)} streams and states, {sum(not o.good for o in outcomes)} not as expected")
    return 1 if failed else 0
