# SPDX-License-Identifier: Apache-2.0
"""JUnit XML: one test suite per area. A failure is the kernel's, an error the harness's.

There is no official schema; this is what Jenkins and GitLab read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TextIO
from xml.etree import ElementTree

from vmm.conformance.model import ClauseResult, Totals, Verdict
from vmm.report.identity import identity, labelled

__all__ = ["JunitReporter"]

# XML 1.0 has no way to write these, not even escaped.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")
_ELEMENTS = {
    Verdict.FAIL: "failure",
    Verdict.TIMEOUT: "error",
    Verdict.ERROR: "error",
    Verdict.SKIP: "skipped",
    Verdict.KNOWN: "skipped",
}


def _text(value: str) -> str:
    return _FORBIDDEN.sub("?", value)


class JunitReporter:
    """Collects the results and writes the document at the end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._results: list[ClauseResult] = []
        self._lines: list[tuple[str, str]] = []
        self._about: dict[str, str] = {}

    def begin(self, host: dict[str, Any], lines: list[tuple[str, str]], clauses: Sequence[str]) -> None:
        """Keep the host's description for the properties."""
        self._about = identity()
        self._lines = [*lines, *labelled(self._about)]

    def started(self, clause: str) -> None:
        """Nothing: the document is written at the end."""

    def result(self, result: ClauseResult) -> None:
        """Keep a result."""
        self._results.append(result)

    def finish(self, totals: Totals, seconds: float) -> None:
        """Write the document."""
        root = ElementTree.Element("testsuites", name="xstate-vmm", time=f"{seconds:.3f}")
        for area in dict.fromkeys(result.id.split(".")[0] for result in self._results):
            chosen = [result for result in self._results if result.id.split(".")[0] == area]
            self._suite(root, area, chosen)
        ElementTree.indent(root)
        self._stream.write('<?xml version="1.0" encoding="UTF-8"?>\n')
        self._stream.write(ElementTree.tostring(root, encoding="unicode") + "\n")
        self._stream.flush()

    def _suite(self, root: ElementTree.Element, area: str, results: list[ClauseResult]) -> None:
        kinds = [_ELEMENTS.get(result.verdict) for result in results]
        suite = ElementTree.SubElement(
            root, "testsuite", name=area, tests=str(len(results)), failures=str(kinds.count("failure")),
            errors=str(kinds.count("error")), skipped=str(kinds.count("skipped")),
            time=f"{sum(result.seconds for result in results):.3f}", timestamp=self._about["time"],
            hostname=_text(self._about["node"]),
        )  # fmt: skip
        properties = ElementTree.SubElement(suite, "properties")
        for name, value in self._lines:
            ElementTree.SubElement(properties, "property", name=_text(name), value=_text(value))
        for result, kind in zip(results, kinds, strict=True):
            _case(suite, result, kind)


def _case(suite: ElementTree.Element, result: ClauseResult, kind: str | None) -> None:
    classname = f"vmm.{result.id.split('.')[0]}"
    case = ElementTree.SubElement(
        suite, "testcase", classname=classname, name=result.id, time=f"{result.seconds:.3f}"
    )
    if kind:
        message = result.reason or f"{result.what}: expected {result.expected}, observed {result.observed}"
        element = ElementTree.SubElement(
            case, kind, message=_text(message), type=result.finding or str(result.verdict)
        )
        details = [
            result.statement,
            f"expected: {result.expected}",
            f"observed: {result.observed}",
            f"source: {result.source}",
            *result.trace,
        ]
        if kind != "skipped":
            element.text = _text("\n".join(details))
    if result.remarks:
        ElementTree.SubElement(case, "system-out").text = _text("\n".join(result.remarks))
