# SPDX-License-Identifier: Apache-2.0
"""The plain program's command line: write down what is seen, or say what is different from several such files.

``python3 plain.pyz FILE [SECTION ...]`` writes; ``python3 plain.pyz --against FILE...`` prints JSON records, the last
with the differences of the first section that has any, and then its exit status is 1. A difference is in what all
files agree about, and is there in each of two tries.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module

#: For how many seconds one section may go on: not as long as a machine may say nothing.
LONGEST = 200.0
_SHOWN = 12
_WIDTH = 300
Section = Callable[[Callable[[str, object], None]], None]
#: architecture -> the modules that have its sections, and those sections that cost least. They come first: the first
#: effect ends the search.
_MODULES = {"x86_64": ("state", "runs", "nested"), "aarch64": ("arm64_state", "arm64_runs")}
_CHEAP = {
    "x86_64": (
        *(
            "system",
            "new",
            "copied",
            "vectors",
            "synced",
            "attributes",
            "instructions",
            "events",
            "msr_bits",
            "lapic",
        ),
    ),
    "aarch64": ("timers", "events", "after_run", "lengths", "system", "inits", "memory", "given", "ids", "gic"),
}


def _sections(architecture: str) -> dict[str, Section]:
    """Return the sections of an architecture by name."""
    modules = [import_module(f"tests.kernels.plain.{name}") for name in _MODULES[architecture]]
    found = {section.__name__: section for module in modules for section in module.SECTIONS}
    return {name: found[name] for name in (*_CHEAP[architecture], *found)}


SECTIONS = _sections(os.uname().machine)


def observe(name: str) -> dict[str, str]:
    """Return what a section sees, by name, from a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(name, writer)
    os.close(writer)
    data, until = b"", time.monotonic() + LONGEST
    while select.select([reader], [], [], max(0, until - time.monotonic()))[0]:
        part = os.read(reader, 1 << 20)
        if not part:
            break
        data += part
    else:
        os.kill(child, signal.SIGKILL)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    seen = {}
    for line in data.decode(errors="replace").splitlines():
        key, _, value = line.partition("\t")
        seen[key] = value
    seen[f"{name} ends"] = str(status)
    return seen


def _told(name: str) -> dict[str, str]:
    """Observe a section and say so: whoever waits sees that there is progress."""
    begin = time.monotonic()
    seen = observe(name)
    record = {"record": "section", "name": name, "seen": len(seen), "seconds": round(time.monotonic() - begin, 1)}
    print(json.dumps(record), flush=True)
    return seen


def _child(name: str, writer: int) -> None:
    with os.fdopen(writer, "w", buffering=1 << 16) as out:
        try:
            SECTIONS[name](lambda key, value: print(key, str(value).replace("\n", " "), sep="\t", file=out))
        except Exception as error:  # whatever it is, the fault made it
            print(f"{name} fails", f"{type(error).__name__}: {error}", sep="\t", file=out)
        out.flush()
        os._exit(0)


def different(seen: dict[str, str], known: Sequence[dict[str, str]]) -> set[str]:
    """Return what is seen otherwise than in all that is known, which agree about it."""
    steady = {key for key in known[0] if all(one.get(key) == known[0][key] for one in known)}
    never = set(seen) - {key for one in known for key in one}
    return {key for key in steady if seen.get(key) != known[0][key]} | never


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit status."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if arguments[0] != "--against":
        names = arguments[1:] or list(SECTIONS)
        seen = {}
        for name in names:
            seen[name] = _told(name)
        with open(arguments[0], "w") as file:
            json.dump(seen, file)
        return 0
    known = []
    for path in arguments[1:]:
        with open(path) as file:
            known.append(json.load(file))
    found: dict[str, str] = {}
    keys: set[str] = set()
    for name in known[0]:
        before = [one[name] for one in known]
        first = _told(name)
        keys = different(first, before)
        if keys:
            keys &= different(_told(name), before)
        for key in sorted(keys)[:_SHOWN]:
            found[key] = f"{before[0].get(key, '')[:_WIDTH]} => {first.get(key, '')[:_WIDTH]}"
        if keys:
            break  # one effect is enough
    count = len(keys)
    print(json.dumps({"record": "plain", "count": count, "differences": found}), flush=True)
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
