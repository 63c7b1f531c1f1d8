# SPDX-License-Identifier: Apache-2.0
"""Runs a build in extracted packages: a mount namespace that has them as its root.

So nothing depends on the host's tools. It needs `unshare` and the right to make such a namespace.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from labs.errors import require_tool, run_tool

__all__ = ["JOBS", "run_in"]

JOBS = 2
#: Debian's names of the tools that nothing configured, and what a build expects to be there.
_SCRIPT = """\
set -e
mount --rbind /dev "$ROOT/dev"
mount --rbind /proc "$ROOT/proc"
mount -t tmpfs tmpfs "$ROOT/tmp"
mkdir "$ROOT/tmp/bin"
ln -s /usr/bin/mawk "$ROOT/tmp/bin/awk"
printf '%s\\n' "$MOUNTS" | while IFS='|' read -r what where; do
    mkdir -p "$ROOT/$where"
    mount --bind "$what" "$ROOT/$where"
done
exec chroot "$ROOT" /usr/bin/env -i PATH=/tmp/bin:/usr/bin:/usr/sbin:/bin HOME=/tmp LC_ALL=C \\
    KBUILD_BUILD_USER=root KBUILD_BUILD_HOST=lab "$@"
"""


def run_in(root: Path, mounts: Sequence[tuple[Path, str]], command: Sequence[str], what: str, log: Path) -> None:
    """Run a command in a root, with folders of the host mounted there in this order, nicely.

    Raises LabError for a command that fails, with the end of what it said; ``log`` has all of it.
    """
    require_tool("unshare", "util-linux")
    words = ["nice", "unshare", *(() if os.geteuid() == 0 else ("--map-root-user",)), "--mount"]
    environment = {"ROOT": str(root), "MOUNTS": "\n".join(f"{path}|{where}" for path, where in mounts)}
    run_tool([*words, "sh", "-c", _SCRIPT, "build", *command], what, env=environment, log=log, timeout=7200)
