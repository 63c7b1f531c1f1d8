# SPDX-License-Identifier: Apache-2.0
"""The patches for Bochs: numbered without gaps, each with a header that says what it is about."""

import re
from pathlib import Path

import pytest
from labs.bochs.build import SERIES, patch_body
from labs.errors import LabError

PATCHES = sorted(SERIES.glob("*.patch"))


def test_the_series_has_no_gaps() -> None:
    assert [int(path.name[:4]) for path in PATCHES] == list(range(1, len(PATCHES) + 1))


@pytest.mark.parametrize("path", PATCHES, ids=lambda path: path.name[:4])
def test_a_header_says_what_was_wrong_and_how_to_see_it(path: Path) -> None:
    text = path.read_text()
    header = text[: -len(patch_body(text))]
    number = int(path.name[:4])
    subject = re.match(rf"Subject: \[PATCH {number:02d}/{len(PATCHES)}\] (\S+): ", header)
    assert subject is not None
    for part in ("Bochs: ", "To see it: ", "Change: ", "License: LGPL-2.1-or-later"):
        assert f"\n{part}" in header, part
    assert max(map(len, header.splitlines())) <= 80
    assert path.name[5:].startswith(subject[1])


def test_only_what_is_applied_counts() -> None:
    text = PATCHES[0].read_text()
    assert patch_body(text) == patch_body("Another header\n\n" + text)
    assert patch_body(text).startswith("diff --git ")
    with pytest.raises(LabError):
        patch_body("no patch")
