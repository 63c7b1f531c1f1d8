# SPDX-License-Identifier: Apache-2.0
"""What the unit tests share: an open KVM, the command, an invented host, and how pytest runs them (tests/plugins)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings

from tests.cli.command_line import Command
from tests.machines.machines import Running
from tests.plugins import apart, ending, guard, shuffle, summary, workers
from vmm import cli
from vmm.arch import ARCHITECTURE
from vmm.kvm.system import Kvm, KvmUnavailable
from vmm.probe.host import Host

# How long an example takes says nothing about what it shows. Where CI says what it is, a failure is of the change
# that is tested, and not of chance.
settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    """Load the plugins of these tests."""
    for plugin in (apart, ending, guard, shuffle, summary, workers):
        config.pluginmanager.register(plugin)


@pytest.fixture
def kvm(request: pytest.FixtureRequest) -> Iterator[Kvm]:
    """An open /dev/kvm; skips where there is none, with the reason that a user would read."""
    try:
        opened = Kvm()
    except KvmUnavailable as error:
        request.node.user_properties.append((summary.NEEDS_KVM, str(error)))
        pytest.skip(str(error))
    with opened:
        yield opened


@pytest.fixture(autouse=True)
def _kvm_where_marked(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("kvm"):
        request.getfixturevalue("kvm")


@pytest.fixture
def running(record_property: Callable[[str, object], None]) -> Running:
    """The emulated machines as they run today."""
    return Running(record_property)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process; returns status, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vmm", *arguments])
        status = cli._run()
        return status, *capfd.readouterr()

    return run


@pytest.fixture
def make_host() -> Callable[..., Host]:
    """A factory of hosts with invented facts."""

    def make(kernel: str = "6.12.48", **facts: object) -> Host:
        given: dict[str, object] = {
            "backend": "kvm_intel",
            "vendor": "GenuineIntel",
            "model": "Some CPU",
            "capabilities": {},
        }
        given |= {"supports": lambda name: False} | facts
        return Host(kernel, ARCHITECTURE, SimpleNamespace(**given))

    return make
