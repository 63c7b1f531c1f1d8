# SPDX-License-Identifier: Apache-2.0
"""``vmm order``: which orders of a restore this KVM accepts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from vmm.kvm.system import Kvm
from vmm.report import order as report
from vmm.report import order_dot
from vmm.state.errors import StateRefused
from vmm.state.trials import measure
from vmm.state.vcpu import steps

__all__ = ["command"]


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Give what counts the restores in a line of a terminal, which is cleared in the end."""
    terminal = sys.stderr.isatty()

    def show(done: int) -> None:
        if terminal:
            print(f"\r{done} restores ", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _draw(graph: str, dot: str | None, svg: str | None) -> None:
    if dot:
        Path(dot).write_text(graph)
    if svg:
        try:
            order_dot.draw(graph, svg)
        except ValueError as error:
            raise click.ClickException(str(error)) from error


@click.command("order")
@click.option("--samples", type=click.IntRange(0, 100000), default=100, show_default=True,
              help="Random orders of each kind to confirm the result with.")  # fmt: skip
@click.option("--seed", type=int, default=1, show_default=True, help="Of values and random orders.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--dot", type=click.Path(dir_okay=False, writable=True), help="Write the graph for graphviz's dot.")
@click.option("--svg", type=click.Path(dir_okay=False, writable=True), help="Draw the graph, with graphviz's dot.")
@click.option("--steps", "only_steps", is_flag=True, help="Print our order with its reasons and sources; no KVM.")
def command(
    samples: int, seed: int, as_json: bool, dot: str | None, svg: str | None, only_steps: bool
) -> int:  # fmt: skip
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
    if svg and not order_dot.drawable():
        raise click.UsageError("--svg needs graphviz's program dot, which is not here: install it, or use --dot FILE")
    try:
        with Kvm() as kvm, _progress() as progress:
            matrix, state = measure(kvm, samples=samples, seed=seed, progress=progress)
    except StateRefused as error:
        print(f"vmm: {error}", file=sys.stderr)
        return 1
    if dot or svg:
        _draw(order_dot.dot(matrix, steps(), list(state.about.items())), dot, svg)
    if as_json:
        print(json.dumps(report.to_json(matrix, steps()), indent=2))
    else:
        print("\n".join(report.lines(matrix, steps())))
    return 0 if matrix.as_expected else 1
