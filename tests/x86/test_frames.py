# SPDX-License-Identifier: Apache-2.0
"""The frames of signals are measured by a handler of ours, on a stack of its own."""

from __future__ import annotations

import os
import signal

import pytest

from vmm._kvm import ffi, lib
from vmm.arch import ARCHITECTURE

pytestmark = [pytest.mark.apart, pytest.mark.skipif(ARCHITECTURE != "x86", reason="frames of x86 are measured")]
_SSE = 1 << 1


def test_each_signal_is_counted_and_its_state_lies_in_its_frame() -> None:
    frames = ffi.new("struct vmm_signal_frames *")
    assert lib.vmm_measure_frames(signal.SIGUSR1, frames) == 0
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert frames.count == 3
    assert 512 < frames.extended < frames.size < 256 << 10
    assert frames.features & _SSE


def test_a_signal_is_ignored_once_its_frames_are_not_measured_any_more() -> None:
    frames = ffi.new("struct vmm_signal_frames *")
    assert lib.vmm_measure_frames(signal.SIGUSR1, frames) == 0
    assert lib.vmm_measure_frames(signal.SIGUSR1, ffi.NULL) == 0
    os.kill(os.getpid(), signal.SIGUSR1)
    assert frames.count == 0
