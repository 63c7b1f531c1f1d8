# SPDX-License-Identifier: Apache-2.0
"""CR0.CD: whether it keeps a guest's loads out of the caches."""

from __future__ import annotations

from vmm.conformance.context import Context
from vmm.conformance.expect import true
from vmm.conformance.registry import clause
from vmm.conformance.x86.caching import PAT_HONOURED, CachingGuest, expect_cached, expect_uncached
from vmm.x86.memory_types import Quirk

_CD = 1 << 30


def _skip_without_cd_quirk(context: Context) -> None:
    """Skip unless KVM_X86_QUIRK_CD_NW_CLEARED can be disabled: it is there, and on, unless somebody does."""
    quirks = context.host.facts.memory_types.quirks
    if not quirks & Quirk.CD_NW_CLEARED:
        context.skip(f"KVM_CAP_DISABLE_QUIRKS2 is {quirks:#x}, without CD_NW_CLEARED")


def _cd_reads_back(guest: CachingGuest) -> None:
    guest.cr0 = _CD
    seen = guest.call("read_cr0", privilege=0)
    guest.cr0 = 0
    true("CR0.CD as the guest reads it", bool(seen & _CD), f"{seen:#x}", "set")


@clause("cr0cd.no-effect-intel", arch="x86", timeout=30.0)
def cache_disable_ignored(context: Context) -> None:
    """CR0.CD reads back as set and leaves loads cached: always on Intel, on AMD with KVM_X86_QUIRK_CD_NW_CLEARED.

    That quirk is on by default. Kernels before 5.18 do not list quirks and have it.

    Source: Documentation/virt/kvm/x86/errata.rst, CR0.CD; arch/x86/kvm/svm/svm.c, svm_set_cr0.
    """
    if context.host.backend == "kvm_amd" and context.host.facts.memory_types.quirks:
        _skip_without_cd_quirk(context)
    guest = CachingGuest(context)
    _cd_reads_back(guest)
    expect_cached(context, guest.switched("CR0.CD", lambda on: setattr(guest, "cr0", _CD * on)))


@clause("cr0cd.amd-honoured", arch="x86", needs=(PAT_HONOURED,), timeout=30.0)
def cache_disable_honoured(context: Context) -> None:
    """On AMD without KVM_X86_QUIRK_CD_NW_CLEARED, CR0.CD in the guest keeps its loads out of the caches.

    Source: arch/x86/kvm/svm/svm.c, svm_set_cr0; Documentation/virt/kvm/api.rst 7.31.
    """
    _skip_without_cd_quirk(context)
    guest = CachingGuest(context, quirks=Quirk.CD_NW_CLEARED)
    _cd_reads_back(guest)
    expect_uncached(context, guest.switched("CR0.CD", lambda on: setattr(guest, "cr0", _CD * on)))
