# SPDX-License-Identifier: Apache-2.0
"""A conformance run divided among several machines of one kind, and its reports made one again.

A machine emulated in one thread leaves the host's other processors idle; half of the clauses in each of two
takes little more than half of the time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO

__all__ = ["Merger", "ShardSink", "divisible", "shard_command"]

_PREFIX = ("vmm", "check")


def divisible(command: Sequence[str]) -> bool:
    """Tell whether a command is a conformance run whose reports can be joined: JSON lines to standard output."""
    words = list(command)
    json_lines = any(words[index : index + 2] == ["--format", "json"] for index in range(len(words)))
    return tuple(words[:2]) == _PREFIX and json_lines and not {"-o", "--output", "--shard", "--list"} & set(words)


def shard_command(command: Sequence[str], part: int, whole: int) -> list[str]:
    """Return the command for one of the machines, counted from 1."""
    return [*command, "--shard", f"{part}/{whole}"]


class Merger:
    """Joins the records: the first host line, the clauses in the order of the undivided run, totals of all."""

    def __init__(self, whole: int, output: BinaryIO | None = None) -> None:
        self._output = output or sys.stdout.buffer
        self._clauses: list[list[bytes]] = [[] for _ in range(whole)]
        self._written = 0
        self._host = False
        self._totals: list[dict[str, Any]] = []

    def line(self, part: int, line: bytes) -> None:
        """Take a line of a machine, counted from 0; one that is not a record is passed on."""
        try:
            record = json.loads(line)
            kind = record["record"]
        except (ValueError, KeyError, TypeError):
            self._write(line)
            return
        if kind == "host":
            if not self._host:
                self._write(line)
            self._host = True
        elif kind == "totals":
            self._totals.append(record)
            if len(self._totals) == len(self._clauses):
                self._finish()
        else:
            self._clauses[part].append(line)
            self._advance()

    def _advance(self) -> None:
        """Write the clauses whose turn it is: each machine has every n-th of them."""
        while True:
            part, position = self._written % len(self._clauses), self._written // len(self._clauses)
            if position >= len(self._clauses[part]):
                return
            self._write(self._clauses[part][position])
            self._written += 1

    def _finish(self) -> None:
        joined: dict[str, Any] = {"record": "totals"}
        for key in self._totals[0]:
            values = [totals[key] for totals in self._totals]
            if isinstance(values[0], list):
                joined[key] = sorted(item for value in values for item in value)
            elif key != "record":
                joined[key] = max(values) if key == "seconds" else sum(values)
        self._write(json.dumps(joined).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        self._output.write(line)
        self._output.flush()


class ShardSink:
    """The sink of one of the machines; its output goes to the merger line by line, its files nowhere."""

    def __init__(self, merger: Merger, part: int, errors: BinaryIO | None = None) -> None:
        self._merger, self._part = merger, part
        self._errors = errors or sys.stderr.buffer
        self._partial = b""

    def output(self, data: bytes) -> None:
        """Take a piece of standard output."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._merger.line(self._part, line + b"\n")

    def error(self, data: bytes) -> None:
        """Write to standard error."""
        self._errors.write(data)
        self._errors.flush()

    def files(self, data: bytes) -> None:
        """Leave the files: a run that is divided writes none."""

    def finish(self) -> None:
        """Pass on a last line that had no end."""
        if self._partial:
            self._merger.line(self._part, self._partial + b"\n")
            self._partial = b""
