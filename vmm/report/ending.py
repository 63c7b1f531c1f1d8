# SPDX-License-Identifier: Apache-2.0
"""The end of a report for people: what failed, how to see it again, what it means, and a text to send."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from vmm.conformance.model import FAILING, ClauseResult, Verdict
from vmm.report.identity import identity, labelled

__all__ = ["ending", "letter", "line"]

_AGAIN, _FIELDS, _LETTERS, _TRACE = 12, 8, 3, 12
_MEANING = {
    Verdict.FAIL: "FAIL: this KVM does not keep what its ABI promises; a guest that relies on it can lose state.",
    Verdict.TIMEOUT: "TIMEOUT: the guest or the clause did not end in time; under load try --time-scale 4.",
    Verdict.ERROR: "ERROR: what the clause needed could not be set up; nothing is known of what it states.",
}
_WHERE = (
    "Who can mend a FAIL: the distribution, for its own kernel; for one of kernel.org the list kvm@vger.kernel.org",
    "(MAINTAINERS names more by file). A statement that is wrong itself is a fault of this program. A text to send:",
)
# What a letter says of the host: what decides which code of KVM ran.
_TOLD = ("kernel", "back end", "CPU", "below", "module parameters")


def line(result: ClauseResult) -> str:
    """Return what failed in one line."""
    if result.what:
        return f"{result.what}: expected {result.expected}, observed {result.observed}"
    return result.reason


def letter(result: ClauseResult, lines: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield the lines of a finding as it can be sent to who can mend it."""
    yield f"KVM: {result.id}: {line(result)}"
    yield ""
    yield f"Promised: {result.statement}"
    yield f"Source:   {result.source}"
    yield f"Seen:     {line(result)}"
    for field in result.fields[1:_FIELDS]:
        yield f"          {field['what']}: expected {field['expected']}, observed {field['observed']}"
    if len(result.fields) > _FIELDS:
        yield f"          and {len(result.fields) - _FIELDS} more fields (--format json has all)"
    yield f"Again:    vmm check {shlex.quote(result.id)}"
    yield ""
    about = identity()
    told = [pair for pair in lines if pair[0] in _TOLD]
    for name, value in [*told, *labelled({key: about[key] for key in about if key != "node"})]:
        yield f"{name}: {value}"
    if result.trace:
        yield ""
        yield f"The last calls before it (of {len(result.trace)} that were kept):"
        yield from (f"  {call}" for call in result.trace[-_TRACE:])


def ending(results: Sequence[ClauseResult], lines: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield the lines that end a report with failures; none without."""
    failed = [result for result in results if result.verdict in FAILING]
    if not failed:
        return
    yield "What failed:"
    for result in failed:
        yield f"  {result.verdict:7} {result.id}: {line(result)}"
    names = [shlex.quote(result.id) for result in failed]
    more = f" (and {len(names) - _AGAIN} more)" if len(names) > _AGAIN else ""
    yield f"Run it again: vmm check {' '.join(names[:_AGAIN])}{more}"
    yield from (_MEANING[verdict] for verdict in _MEANING if any(one.verdict is verdict for one in failed))
    broken = [result for result in failed if result.verdict is Verdict.FAIL]
    if broken:
        yield from _WHERE
    for result in broken[:_LETTERS]:
        yield ""
        yield from (f"    {text}".rstrip() for text in letter(result, lines))
    if len(broken) > _LETTERS:
        yield ""
        yield f"    ({len(broken) - _LETTERS} more: run them by themselves to get theirs)"
