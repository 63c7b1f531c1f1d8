# SPDX-License-Identifier: Apache-2.0
"""The closed world in numbers: how many pairs of field and property a run judged, and why not the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vmm.conformance.model import Totals

__all__ = ["lines"]

_NAMED = 6
Untold = Mapping[str, Sequence[str]]


def lines(totals: Totals) -> Iterator[str]:
    """Yield a line for each clause that counts fields, one for each reason not to judge some, and the share."""
    reasons: dict[str, list[str]] = {}
    for clause, coverage in totals.coverage.items():
        untold: Untold = coverage["untold"]
        left = sum(map(len, untold.values()))
        yield f"{clause}: {coverage['judged']} fields judged" + (f", {left} not" if left else "")
        for reason, fields in untold.items():
            reasons.setdefault(reason, []).extend(field for field in fields if field not in reasons.get(reason, ()))
    for reason, fields in reasons.items():
        more = f" and {len(fields) - _NAMED} more" if len(fields) > _NAMED else ""
        yield f"not judged, {reason}: {', '.join(fields[:_NAMED])}{more}"
    judged, left = totals.pairs
    if judged + left:
        share = 100 * judged / (judged + left)
        yield f"{judged} of {judged + left} pairs of field and property judged: {share:.1f} %"
    else:
        yield "no clause that ran counts fields: try 'world.*'"
