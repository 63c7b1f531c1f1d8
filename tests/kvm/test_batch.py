# SPDX-License-Identifier: Apache-2.0
"""Calls that are made together: as one where nobody interposes, and remembered as if each were by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Batch, Call, Trace, interpose, set_trace
from vmm.kvm.system import Kvm

pytestmark = pytest.mark.kvm

MP_STATE = "KVM_GET_MP_STATE"


@pytest.fixture
def trace() -> Iterator[Trace]:
    """What remembers the last two calls."""
    kept = Trace(2)
    yield kept
    set_trace(None)


def _batch(last: int = lib.KVM_GET_MP_STATE) -> Batch:
    requests = [lib.KVM_GET_MP_STATE] * 2 + [last]
    return Batch([(request, ffi.new("struct kvm_mp_state *"), -1) for request in requests])


def test_a_trace_keeps_the_last_calls_of_a_batch(kvm: Kvm, trace: Trace) -> None:
    with kvm.create_vm() as vm:
        vcpu = vm.create_vcpu()
        set_trace(trace)
        assert _batch().run(vcpu.fd) == 3
    lines = trace.lines()
    assert trace.count == 3 and lines[0] == "... 1 earlier calls"
    assert all(line.startswith(MP_STATE) and line.endswith("= 0") for line in lines[1:])


def test_a_trace_keeps_the_call_that_a_batch_stopped_at_and_none_after_it(kvm: Kvm, trace: Trace) -> None:
    unknown = 0xAEFF
    with kvm.create_vm() as vm:
        vcpu = vm.create_vcpu()
        set_trace(trace)
        assert _batch(unknown).run(vcpu.fd) == 2 and "= -1 E" in trace.lines()[-1]
        assert trace.count == 3
        assert _batch().run(vcpu.fd, 1, 2) == 2 and trace.count == 4


def test_each_call_of_a_batch_passes_an_interposer(kvm: Kvm) -> None:
    seen: list[str] = []

    def observe(call: Call, proceed: object) -> int:
        seen.append(call.name)
        return 0

    with kvm.create_vm() as vm:
        vcpu = vm.create_vcpu()
        with interpose(observe):
            assert _batch().run(vcpu.fd) == 3
    assert seen == [MP_STATE] * 3
