# SPDX-License-Identifier: Apache-2.0
"""One table of MSR names: reports show IA32_XFD, saved states and --tolerate have XFD."""

from __future__ import annotations

import pytest

from vmm.x86 import msr
from vmm.x86.msr_names import KNOWN, Msr, name, saved_name


@pytest.mark.parametrize("index", Msr)
def test_the_name_in_a_saved_state_is_the_name_without_ia32(index: Msr) -> None:
    assert saved_name(index) == name(index).removeprefix("IA32_") == index.name


def test_no_name_is_there_twice() -> None:
    names = [name(index) for index in sorted(KNOWN | set(Msr))]
    assert len(names) == len(set(names))


def test_a_name_with_its_number_is_made_from_the_same_table() -> None:
    assert msr.name(0x1C4) == "IA32_XFD (0x1c4)"
    assert msr.name(0x34) == "SMI_COUNT (0x34)"


def test_an_msr_without_a_name_shows_its_number_once() -> None:
    assert (msr.name(0x200), name(0x200), saved_name(0x200)) == ("MSR 0x200", "MSR 0x200", "0x200")
    assert saved_name(0xD90) == "0xd90"  # named by now, but recorded by its number
