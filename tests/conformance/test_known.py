# SPDX-License-Identifier: Apache-2.0
"""What a KVM is known to lose when it is written is known to `vmm order` too, by the field."""

from __future__ import annotations

from collections.abc import Callable

from vmm.conformance.world.known import losses
from vmm.probe.host import Host

_FIELD = "MSRS.0xc001011f"


def test_a_loss_that_a_clause_is_known_to_find_on_this_back_end_is_known(make_host: Callable[..., Host]) -> None:
    lost = [f"{_FIELD}: 0x4, 0x0", "REGS.rax: 0x1, 0x0"]
    assert list(losses(make_host(backend="kvm_pvm", vendor="AuthenticAMD"), lost)) == lost[:1]


def test_it_is_news_on_another_back_end(make_host: Callable[..., Host]) -> None:
    assert losses(make_host(backend="kvm_amd", vendor="AuthenticAMD"), [f"{_FIELD}: 0x4, 0x0"]) == {}
