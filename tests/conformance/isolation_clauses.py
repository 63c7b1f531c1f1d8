# SPDX-License-Identifier: Apache-2.0
"""Clauses that misbehave, for the tests of isolation; a server preloads this module."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from tests.patience import HANGS
from vmm.arch import ARCHITECTURE
from vmm.conformance.context import Context
from vmm.conformance.expect import equal
from vmm.conformance.registry import clause
from vmm.x86.guest import Guest


@clause("test.passes", arch=ARCHITECTURE)
def passes(context: Context) -> None:
    """Nothing is wrong here.

    Source: the tests.
    """
    equal("the number of a VM's first vCPU", context.vcpu().identifier, 0)


@clause("test.hangs", arch=ARCHITECTURE, timeout=1.0)
def hangs(context: Context) -> None:
    """Never ends, and leaves a child of its own behind.

    Source: the tests.
    """
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "left-behind-by-test.hangs"])
    time.sleep(600)


@clause("test.guest-hangs", arch=ARCHITECTURE)
def guest_hangs(context: Context) -> None:
    """The guest loops for ever.

    Source: the tests.
    """
    context.own(Guest(context.kvm, "hello")).call("spin", timeout=0.3)


@clause("test.crashes", arch=ARCHITECTURE)
def crashes(context: Context) -> None:
    """The process dies of a signal.

    Source: the tests.
    """
    os.kill(os.getpid(), signal.SIGSEGV)


@clause("test.exits", arch=ARCHITECTURE)
def exits(context: Context) -> None:
    """The process leaves without a result.

    Source: the tests.
    """
    print("last words", flush=True)
    os._exit(7)


@clause("test.raises", arch=ARCHITECTURE)
def raises(context: Context) -> None:
    """The harness itself is at fault.

    Source: the tests.
    """
    raise ZeroDivisionError("a fault of the harness")


@clause("test.sleeps", arch=ARCHITECTURE, timeout=2 * HANGS)
def sleeps(context: Context) -> None:
    """Takes its time.

    Source: the tests.
    """
    time.sleep(HANGS)
