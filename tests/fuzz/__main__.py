# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.fuzz TARGET``: fuzz one reader for a time; ``--minimise`` keeps what is worth it for the tests.

Exits with 0 if nothing was found, 1 with the finding's file if something was, 2 if it could not run. A run goes on
from the corpus folder of the one before.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import traceback
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz.minimise import smallest
from tests.fuzz.targets import RECORDED, TARGETS, judge

_LONGEST = 128 << 10  # bytes of an input
_RECORDED = 100 << 10  # bytes of all inputs of one target in the tests
_FOLDER = Path(tempfile.gettempdir()) / "vmm-fuzz"
_PROGRESS = re.compile(r"cov: (\d+)")
_EXECUTIONS = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


def _write(folder: Path, data: bytes) -> None:
    (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def _fill(name: str, corpus: Path) -> None:
    """Begin with the valid inputs and with what the tests have."""
    corpus.mkdir(parents=True, exist_ok=True)
    for data in TARGETS[name].seeds():
        _write(corpus, data)
    for path in (RECORDED / name).glob("*"):
        _write(corpus, path.read_bytes())


def _fuzz(name: str, seconds: int, corpus: Path, findings: Path, seed: int) -> int:
    findings.mkdir(parents=True, exist_ok=True)
    if find_spec("atheris") is None:
        print("fuzzing needs atheris: pip install -e '.[fuzz]'", file=sys.stderr)
        return 2
    command = [
        sys.executable, "-m", "tests.fuzz.engine", name, f"-max_total_time={seconds}", f"-max_len={_LONGEST}",
        "-timeout=30", "-rss_limit_mb=1024", "-print_final_stats=1", f"-seed={seed}",
        f"-artifact_prefix={findings}/{name}-", str(corpus),
    ]  # fmt: skip
    edges, executions, said = 0, 0, list[str]()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as run:
        assert run.stdout
        for line in run.stdout:
            edges = int(found[1]) if (found := _PROGRESS.search(line)) else edges
            executions = int(found[1]) if (found := _EXECUTIONS.search(line)) else executions
            if not line.startswith(("#", "INFO", "stat::")):
                said.append(line)
    print(f"{name}: {executions} executions, {edges} edges, {len(list(corpus.iterdir()))} inputs in {corpus}")
    if run.returncode:
        print("".join(said[-60:]))
    return 1 if run.returncode else 0


def _minimise(name: str, corpus: Path) -> int:
    """Have the tests read the inputs that are left of a corpus."""
    target, recorded = TARGETS[name], RECORDED / name
    kept = smallest(target, (path.read_bytes() for path in corpus.iterdir()), _RECORDED)
    recorded.mkdir(parents=True, exist_ok=True)
    for path in recorded.iterdir():
        path.unlink()
    for data in kept:
        _write(recorded, data)
    print(f"{name}: {len(kept)} inputs of {sum(map(len, kept))} bytes in {recorded}")
    return 0


def _replay(name: str, paths: list[Path]) -> int:
    """Read single inputs as the fuzzer does, and show what is wrong with them."""
    status = 0
    for path in paths:
        try:
            print(f"{path}: {'taken' if judge(TARGETS[name], path.read_bytes()) else 'refused'}")
        except Exception:
            print(f"{path}:\n{traceback.format_exc()}")
            status = 1
    return status


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="a folder that stays; by default one in the temporary folder")
    parser.add_argument("--findings", type=Path, default=_FOLDER, help="where the input of a finding is written")
    parser.add_argument("--seed", type=int, default=0, help="of libFuzzer; 0 is another one each time")
    parser.add_argument("--minimise", action="store_true", help="do not fuzz: keep what is worth it for the tests")
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE", help="do not fuzz: read these inputs")
    arguments = parser.parse_args()
    if arguments.replay:
        return _replay(arguments.target, arguments.replay)
    corpus = arguments.corpus or _FOLDER / arguments.target
    _fill(arguments.target, corpus)
    if arguments.minimise:
        return _minimise(arguments.target, corpus)
    return _fuzz(arguments.target, arguments.seconds, corpus, arguments.findings, arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
