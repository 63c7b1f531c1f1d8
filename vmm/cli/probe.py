# SPDX-License-Identifier: Apache-2.0
"""``vmm probe``: what this host's KVM offers."""

from __future__ import annotations

import json

import click

from vmm.kvm.system import Kvm
from vmm.probe.document import document, lines
from vmm.probe.host import measure

__all__ = ["command"]


@click.command("probe")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with all of it, for `vmm compat`.")
def command(as_json: bool) -> int:
    """Show what this host's KVM offers: back end, xfeatures or vector lengths, sizes, capabilities.

    What leaves a mark on a process (a guest permission, a vCPU) is asked in a short-lived child, so that the rest
    is the answer of a fresh process. The JSON names neither the host nor anything else about it than its CPU,
    kernel and KVM; its first keys are "schema" and "version", then come those of the first line of
    `vmm check --format json`, then those that vmm.probe.x86.survey and vmm.probe.arm64.survey describe.
    """
    with Kvm() as kvm:
        host = measure(kvm)
        found = document(kvm, host)
    if as_json:
        print(json.dumps(found, indent=2))
        return 0
    shown = [*host.lines(), *lines(found)]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        print(f"{name:{width}}  {value}")
    print()
    for name, value in found["capabilities"].items():
        print(f"{name:{width}}  {value}")
    return 0
