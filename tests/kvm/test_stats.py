# SPDX-License-Identifier: Apache-2.0
"""KVM's counters are read by name, again and again."""

from __future__ import annotations

import pytest

from vmm.arch import module
from vmm.kvm.handle import Handle
from vmm.kvm.ioctl import KvmError
from vmm.kvm.stats import Stats
from vmm.kvm.system import Kvm

_TICKS = 20


@pytest.mark.kvm
def test_a_guest_that_leaves_is_seen_in_the_counters_of_its_vcpu(kvm: Kvm) -> None:
    with module("guest").Guest(kvm, "hello") as guest, _stats(guest.vcpu) as stats:
        before = stats.read("exits")
        guest.call("ticks", _TICKS, timeout=60)
        assert stats.read("exits") >= before + _TICKS


@pytest.mark.kvm
def test_a_counter_that_does_not_exist_is_a_lookup_error(kvm: Kvm) -> None:
    with kvm.create_vm() as vm, _stats(vm) as stats, pytest.raises(LookupError):
        stats.read("no_such_counter")


def _stats(subject: Handle) -> Stats:
    try:
        return Stats(subject)
    except KvmError as error:
        pytest.skip(f"this KVM has no statistics: {error}")
