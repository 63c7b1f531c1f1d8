# SPDX-License-Identifier: Apache-2.0
"""A sender that is killed in the middle of a migration.

    python -m tests.migration.mortal ADDRESS KIND WHEN FILE [STEPS]

It kills itself ``before`` or ``after`` it sends a message of that kind, and leaves in FILE which processes it has
started; ``held``, it waits before it sends it until FILE is gone. Without a KIND it does neither. Its guest has not
run before: it begins where it is handed over to.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from tests.patience import HANGS, eventually
from tests.processes import descendants
from vmm.arch import module
from vmm.kvm.system import Kvm
from vmm.migration.convergence import Limits
from vmm.migration.runner import Runner
from vmm.migration.source import Options, Source
from vmm.migration.transport import Connector, parse
from vmm.migration.wire import Channel, Kind

__all__ = ["LEVEL", "SEED", "STEPS"]

LEVEL, STEPS, SEED = "sse", 20000, 7
_ARRIVES = 0.3  # seconds in which what was sent is most likely read


def _main(address: str, kind: str, when: str, file: str, steps: str = str(STEPS)) -> int:
    send = Channel.send

    def last(channel: Channel, sent: Kind, *body: bytes) -> None:
        if sent.name != kind or when == "after":
            send(channel, sent, *body)
        if sent.name == kind:
            if when == "after":
                time.sleep(_ARRIVES)
            Path(file).write_text(" ".join(map(str, descendants(os.getpid()))))
            if when != "held":
                os.kill(os.getpid(), signal.SIGKILL)
            eventually(lambda: not Path(file).exists())
            send(channel, sent, *body)

    Channel.send = last  # type: ignore[method-assign, assignment]
    with Kvm() as kvm, module("chain").make_guest(kvm, LEVEL, int(steps), SEED) as guest:
        runner = Runner(guest)
        options = Options(limits=Limits(downtime=0.5), patience=HANGS)
        report = Source(runner, Connector(parse(address), HANGS), options).migrate()
        runner.close()
    print(report.at.name, report.reason)
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
