# SPDX-License-Identifier: Apache-2.0
"""``vmm diff``: how two saved states differ."""

from __future__ import annotations

import json
from typing import BinaryIO

import click

from vmm.cli.options import Size
from vmm.state.compare import differences
from vmm.state.errors import printable
from vmm.state.parts import check_parts
from vmm.state.stream.container import Limits
from vmm.state.stream.decode import open_state
from vmm.state.stream.pages import page_differences

__all__ = ["command"]


@click.command("diff")
@click.argument("first", type=click.File("rb"))
@click.argument("second", type=click.File("rb"))
@click.option("--memory", type=Size(), default="1G", show_default=True, help="The largest guest to accept.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(first: BinaryIO, second: BinaryIO, memory: int, as_json: bool) -> int:
    """Name the registers and fields that differ between two files with a state; ``-`` is standard input.

    State that changes by itself, such as the time stamp counter, may differ. Exits with 0 if the states are the same,
    1 if they differ, 2 if a file is damaged or no state.
    """
    if first.fileno() == second.fileno():
        raise click.UsageError("only one of the two files can be standard input")
    limits = Limits(memory=memory)
    (ours, our_pages), (theirs, their_pages) = (open_state(file, limits=limits) for file in (first, second))
    for state in (ours, theirs):
        check_parts(state)
    found = differences(ours, theirs)
    pages = page_differences(ours.memory, our_pages, theirs.memory, their_pages)
    found += pages if ours.arch == theirs.arch else []
    if as_json:
        rows = [{"where": row.where, "name": row.name, "values": row.values} for row in found]
        print(json.dumps({"equal": not found, "differences": rows}, indent=2))
    else:
        for row in found:
            print(printable(str(row)))
    return 1 if found else 0
