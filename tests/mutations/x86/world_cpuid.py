# SPDX-License-Identifier: Apache-2.0
"""Lies about CPUID entries: one is shown otherwise, or is not kept."""

from __future__ import annotations

from tests.mutations.lies import Change, after, before
from tests.mutations.registry import lies
from vmm.kvm.ioctl import Call

GET, SET = "KVM_GET_CPUID2", "KVM_SET_CPUID2"


def _entry(function: int, field: str, bits: int) -> Change:
    """Change the first entry of a leaf."""

    def change(call: Call) -> None:
        for entry in call.argument.entries[0 : call.argument.nent]:
            if entry.function == function:
                setattr(entry, field, getattr(entry, field) ^ bits)
                return

    return change


lies(
    "world.cpuid-kept",
    "world.cpuid-moved",
    the_brand_is_another=lambda: after(GET, _entry(0x8000_0003, "ebx", 1)),
    the_signature_is_another=lambda: after(GET, _entry(1, "eax", 1 << 4)),
    kvms_signature_is_another=lambda: after(GET, _entry(0x4000_0000, "ebx", 1)),
    the_flags_are_others=lambda: after(GET, _entry(0xD, "flags", 1)),
    a_register_is_lost=lambda: before(SET, _entry(0x8000_0004, "edx", 1 << 9)),
)
lies(
    "world.cpuid-kept",
    apic_is_as_it_was_written=lambda: after(GET, _entry(1, "edx", 1 << 9)),
    the_size_is_as_it_was_written=lambda: after(GET, _entry(0xD, "ebx", 0x10)),
)
