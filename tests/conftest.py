# SPDX-License-Identifier: Apache-2.0
"""What the unit tests share: an open KVM, and a host that nobody measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from vmm.arch import ARCHITECTURE
from vmm.conformance.host import Host
from vmm.system import Kvm, KvmUnavailable


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    """An open /dev/kvm; skips where there is none, with the reason that a user would read."""
    try:
        opened = Kvm()
    except KvmUnavailable as error:
        pytest.skip(str(error))
    with opened:
        yield opened


@pytest.fixture
def make_host() -> Callable[..., Host]:
    """A factory of hosts with invented facts."""

    def make(kernel: str = "6.12.48", **facts: object) -> Host:
        given = {"backend": "kvm_intel", "vendor": "GenuineIntel", "model": "Some CPU", "capabilities": {}}
        given |= {"supports": lambda name: False} | facts
        return Host(kernel, ARCHITECTURE, SimpleNamespace(**given))

    return make
