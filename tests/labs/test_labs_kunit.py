# SPDX-License-Identifier: Apache-2.0
"""The KTAP report before the parser of the kernel itself, tools/testing/kunit of Debian's linux-source."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from labs.cache import Cache
from labs.config import KERNELS
from labs.errors import run_tool
from labs.packages import Archive
from labs.releases import parse_kernel

from tests.machines.machines import EVERY_KERNEL, NEWEST
from vmm.conformance.model import ClauseResult, Totals, Verdict
from vmm.conformance.registry import all_clauses
from vmm.report import reporter

pytestmark = pytest.mark.machine
_ARCHITECTURE = "amd64"
# Turns of verdicts, so that areas hold a mixture; what KUnit has no word for counts as its neighbour there.
_VERDICTS = (Verdict.PASS, Verdict.SKIP, Verdict.KNOWN, Verdict.FAIL, Verdict.INFO, Verdict.TIMEOUT, Verdict.PASS)


def kunit(kernel: str) -> Path:
    """Return kunit.py of a kernel's source, fetched and unpacked once."""
    cache = Cache()
    archive = Archive(cache, parse_kernel(kernel).suite, _ARCHITECTURE)
    package = archive.candidate(f"linux-source-{kernel}")

    def make(folder: Path) -> None:
        with cache.scratch("kunit-") as unpacked:
            archive.extract([package], unpacked)
            (packed,) = unpacked.glob("usr/src/linux-source-*.tar.xz")
            part = ("--strip-components=1", "--wildcards", "*/tools/testing/kunit")
            run_tool(["tar", "-xf", packed, "-C", folder, *part], f"Unpacking {package.name}")

    return cache.build("kunit", [package.deb], make, f"unpacking {package.name}") / "tools/testing/kunit/kunit.py"


def parsed(kernel: str, report: str, folder: Path) -> tuple[int, str]:
    """Return the exit status of kunit.py and what it prints of a report."""
    (folder / "report").write_text(report)
    command = [sys.executable, str(kunit(kernel)), "parse", str(folder / "report")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if EVERY_KERNEL or kernel == NEWEST])
def test_the_kernels_own_parser_reads_every_clause(kernel: str, tmp_path: Path) -> None:
    verdicts = [_VERDICTS[at % len(_VERDICTS)] for at in range(len(all_clauses()))]
    results = [
        ClauseResult(clause.id, verdict, clause.statement, what="x", expected="1", observed="# 2")
        for clause, verdict in zip(all_clauses(), verdicts, strict=True)
    ]
    stream = io.StringIO()
    made = reporter("ktap", stream)
    made.begin({}, [("kernel", "1 # 2")], [result.id for result in results])
    for result in results:
        made.result(result)
    made.finish(Totals(results), 1.0)
    status, output = parsed(kernel, stream.getvalue(), tmp_path)
    failed = verdicts.count(Verdict.FAIL) + verdicts.count(Verdict.TIMEOUT)
    skipped = verdicts.count(Verdict.SKIP)
    counts = re.findall(r"(\w+): (\d+)", output.rpartition("Testing complete.")[2])
    expected = {"passed": len(verdicts) - failed - skipped, "failed": failed, "skipped": skipped}
    assert {word: int(number) for word, number in counts} == expected, output[-2000:]
    assert status != 0
