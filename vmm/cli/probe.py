# SPDX-License-Identifier: Apache-2.0
"""``vmm probe``: what this host's KVM offers."""

from __future__ import annotations

import json

import click

from vmm.conformance.host import measure
from vmm.system import Kvm

__all__ = ["command"]


@click.command("probe")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, CPUID and capabilities included.")
def command(as_json: bool) -> int:
    """Show what this host's KVM offers: back end, xfeatures, sizes, capabilities.

    Nothing is requested and no vCPU is made, so the answer is that of a fresh process.
    """
    with Kvm() as kvm:
        host = measure(kvm)
    if as_json:
        print(json.dumps(host.to_json(), indent=2))
        return 0
    lines = host.lines()
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:{width}}  {value}")
    print()
    for name, value in host.facts.capabilities.items():
        print(f"{name:{width}}  {value}")
    return 0
