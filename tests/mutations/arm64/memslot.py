# SPDX-License-Identifier: Apache-2.0
"""Lies about the flags of memslots: those about x86's."""

from __future__ import annotations

from tests.mutations.registry import lies, repeated

for _lie in repeated(
    "memslot", "memslot.flags", "memslot.flags2", "memslot.readonly-fixed", "memslot.readonly-memfd"
):
    lies(_lie.clause, **{_lie.name: lambda made=_lie.factory: made()})
