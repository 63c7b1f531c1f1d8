# SPDX-License-Identifier: Apache-2.0
"""A guest's set-up is the same wherever it was made."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from vmm.kvm.system import Kvm
from vmm.x86 import chain
from vmm.x86.cpuid import get_cpuid
from vmm.x86.guest import Guest


@pytest.mark.kvm
@pytest.mark.apart
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this process may use one CPU only")
@pytest.mark.parametrize("make", [lambda kvm: Guest(kvm, "hello"), lambda kvm: chain.configured(kvm, "sse")])
def test_two_guests_have_the_same_cpuid_on_whichever_cpu_they_were_made(
    kvm: Kvm, make: Callable[[Kvm], Guest]
) -> None:
    tables = []
    for cpu in sorted(os.sched_getaffinity(0))[:2]:
        os.sched_setaffinity(0, {cpu})
        with make(kvm) as guest:
            tables.append(get_cpuid(guest.vcpu).packed)
    assert tables[0] == tables[1]
