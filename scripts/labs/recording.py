# SPDX-License-Identifier: Apache-2.0
"""Write recorded totals into a file of host profiles, and leave everything else in it as it is."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from .errors import LabError
from .hosts import load_profiles

__all__ = ["Recording", "record", "with_recordings"]

#: of each profile by its name: the kernel's release, and the count of each verdict
Recording = Mapping[str, tuple[str, Mapping[str, int]]]

_PROFILE = re.compile(r"^\s*\[\[\s*profile\s*\]\]", re.MULTILINE)
_TABLE = re.compile(r"^\s*\[", re.MULTILINE)
_NAME = re.compile(r"""^\s*name\s*=\s*["']([^"']*)["']""", re.MULTILINE)
_RECORDED = re.compile(r"^\s*recorded\s*=.*\n", re.MULTILINE)


def record(path: Path, recordings: Recording) -> None:
    """Change the `recorded` of profiles in a file; what was there is replaced only by a file that can be read."""
    text = with_recordings(path.read_text(), recordings)
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    try:
        kept = {profile.name: (profile.release, dict(profile.totals)) for profile in load_profiles(new)}
        if any(kept.get(name) != (release, dict(totals)) for name, (release, totals) in recordings.items()):
            raise LabError(f"The totals could not be written into {path}: is 'recorded' one line in each profile?")
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def with_recordings(text: str, recordings: Recording) -> str:
    """Return the text of a file of profiles with the `recorded` lines of some of them replaced or added."""
    starts = [match.start() for match in _PROFILE.finditer(text)]
    parts = [text[start:end] for start, end in zip([0, *starts], [*starts, len(text)], strict=True)]
    return "".join([parts[0], *(_changed(part, recordings) for part in parts[1:])])


def _changed(part: str, recordings: Recording) -> str:
    """Return one profile's text with its new line, which comes before the tables in it."""
    first = _PROFILE.match(part)
    assert first is not None
    inner = _TABLE.search(part, first.end())
    head, tail = (part[: inner.start()], part[inner.start() :]) if inner else (part, "")
    name = _NAME.search(head)
    if name is None or name[1] not in recordings:
        return part
    release, totals = recordings[name[1]]
    words = [f"release = {json.dumps(release)}", *(f"{verdict} = {count}" for verdict, count in totals.items())]
    line = f"recorded = {{ {', '.join(words)} }}\n"
    if _RECORDED.search(head):
        return _RECORDED.sub(lambda _: line, head, count=1) + tail
    body = head.rstrip("\n")
    return body + "\n" + line + head[len(body) + 1 :] + tail
