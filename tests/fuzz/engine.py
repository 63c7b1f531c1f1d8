# SPDX-License-Identifier: Apache-2.0
"""The process that fuzzes: ``python -m tests.fuzz.engine TARGET [OPTION of libFuzzer ...] FOLDER ...``.

atheris drives it, which sees which lines of this package each input reaches. It ends with the first finding, which
libFuzzer writes to a file.
"""

from __future__ import annotations

import random
import sys

import atheris

with atheris.instrument_imports(include=["vmm"]):
    from tests.fuzz.targets import TARGETS, judge

__all__ = ["main"]


def main(arguments: list[str]) -> None:
    """Fuzz until libFuzzer ends the process."""
    target = TARGETS[arguments[1]]

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        source = random.Random(seed)

        def leaf(part: bytes) -> bytes:
            return bytes(atheris.Mutate(part, max(1, min(most, len(part) + 64))))

        try:
            found = target.change(source, data, leaf)
        except Exception:  # an input without the form of its kind any longer
            found = leaf(data)
        return found if 0 < len(found) <= most else found[:most] or b"\0"

    atheris.Setup([arguments[0], *arguments[2:]], lambda data: judge(target, data) and None, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
