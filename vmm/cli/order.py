# SPDX-License-Identifier: Apache-2.0
"""``vmm order``: which orders of a restore this KVM accepts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from vmm.kvm.system import Kvm
from vmm.report import order as report
from vmm.state.errors import StateRefused
from vmm.state.trials import measure
from vmm.state.vcpu import steps

__all__ = ["command"]


@click.command("order")
@click.option("--samples", type=click.IntRange(0, 100000), default=100, show_default=True,
              help="Random orders of each kind to confirm the result with.")  # fmt: skip
@click.option("--seed", type=int, default=1, show_default=True, help="Of values and random orders.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--svg", type=click.Path(dir_okay=False, writable=True), help="Draw the partial order into this file.")
@click.option("--steps", "only_steps", is_flag=True, help="Print our order with its reasons and sources; no KVM.")
def command(samples: int, seed: int, as_json: bool, svg: str | None, only_steps: bool) -> int:
    """Find out in which orders this KVM lets a vCPU's state be restored, and what is lost in the others.

    Restores are only read back, no guest runs. Exits with 1 if this KVM is not as expected: an order that keeps all
    constraints found did not restore the state; a constraint is enforced that no step has (--steps), or one that
    every KVM enforces is not; what was written to the vCPU is lost whatever the order, or cannot be restored at all.
    A line "unexpected" or "lost" says which; in JSON as_expected is false, and unknown, missing and lost have them.
    """
    if only_steps:
        for step in steps():
            print(f"{step.name}: {step.get}, {step.set}")
            for follows in step.after:
                print(f"    after {follows.step}: {follows.reason} ({follows.source})")
        return 0
    terminal = sys.stderr.isatty()

    def progress(done: int) -> None:
        if terminal:
            print(f"\r{done} restores ", end="", file=sys.stderr, flush=True)

    try:
        with Kvm() as kvm:
            matrix, _ = measure(kvm, samples=samples, seed=seed, progress=progress)
    except StateRefused as error:
        print(f"vmm: {error}", file=sys.stderr)
        return 1
    if terminal:
        print(file=sys.stderr)
    if svg:
        Path(svg).write_text(report.svg(matrix))
    if as_json:
        print(json.dumps(report.to_json(matrix, steps()), indent=2))
    else:
        print("\n".join(report.lines(matrix, steps())))
    return 0 if matrix.as_expected else 1
