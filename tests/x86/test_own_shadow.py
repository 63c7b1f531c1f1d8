# SPDX-License-Identifier: Apache-2.0
"""A user shadow stack of this process's own around KVM_RUN, where the CPU and the kernel have one."""

from __future__ import annotations

import errno

import pytest

from vmm.arch import ARCHITECTURE
from vmm.kvm.exits import IoOut
from vmm.kvm.system import Kvm

pytestmark = [pytest.mark.skipif(ARCHITECTURE != "x86", reason="shadow stacks are x86"), pytest.mark.apart]


def test_whether_this_process_can_have_a_shadow_stack_is_an_errno_and_can_be_asked_again() -> None:
    from vmm.x86.own_shadow import own_shadow_stack

    first = own_shadow_stack()
    assert first in (0, errno.EOPNOTSUPP, errno.EINVAL)
    assert own_shadow_stack() == first


@pytest.mark.kvm
def test_the_shadow_stack_around_a_run_is_there_before_and_after_it(kvm: Kvm) -> None:
    from vmm.x86.guest import Guest
    from vmm.x86.own_shadow import own_shadow_stack, run_with_shadow_stack

    if error := own_shadow_stack():
        pytest.skip(f"ARCH_SHSTK_ENABLE gives {errno.errorcode[error]}")
    with Guest(kvm, "hello") as guest:
        guest.prepare("ticks", 1)
        exit, own = run_with_shadow_stack(guest.vcpu, 0x1234567890, 60)
        assert isinstance(exit, IoOut)
        assert own.before and own.after == own.before and own.read == 0x1234567890
