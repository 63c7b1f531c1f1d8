# SPDX-License-Identifier: Apache-2.0
"""Collects the clauses as pytest items: ``pytest --pyargs vmm.conformance.clauses``.

So ``-k``, ``--junitxml`` and xdist work for those who prefer them. Loaded by an entry point in every pytest run
of the environment, so nothing is imported or started until a clause module is collected.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vmm.conformance.model import ClauseResult
    from vmm.conformance.registry import Clause
    from vmm.conformance.runner import Runner

__all__ = ["ClauseFailed", "ClauseFile", "ClauseItem"]

_CLAUSES = Path(__file__).resolve().parent / "clauses"
_RUNNER: pytest.StashKey[Runner] = pytest.StashKey()


class ClauseFailed(Exception):
    """A clause ended with FAIL, TIMEOUT or ERROR; ``result`` has the evidence."""

    def __init__(self, result: ClauseResult) -> None:
        super().__init__(result.id)
        self.result = result


class ClauseItem(pytest.Item):
    """One clause."""

    def __init__(self, *, clause: Clause, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.clause = clause

    def runtest(self) -> None:
        """Run the clause in its own child and turn the verdict into pytest's."""
        from vmm.conformance.context import Options
        from vmm.conformance.model import FAILING, Verdict
        from vmm.conformance.runner import Job

        result = _runner(self.config).results([Job.of(self.clause.id, Options())])[0]
        if result.remarks:
            self.add_report_section("call", "notes", "\n".join(result.remarks))
        if result.verdict is Verdict.SKIP:
            pytest.skip(result.reason)
        if result.verdict is Verdict.KNOWN:
            pytest.xfail(f"{result.reason} ({result.reference})")
        if result.verdict in FAILING:
            raise ClauseFailed(result)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show the clause's evidence instead of this plugin's traceback."""
        if not isinstance(excinfo.value, ClauseFailed):
            return super().repr_failure(excinfo, style)
        result = excinfo.value.result
        lines = [f"{result.verdict} {result.id}", result.statement]
        if result.expected:
            lines.append(f"{result.what}: expected {result.expected}, observed {result.observed}")
        return "\n".join([*lines, result.reason, *result.trace]).rstrip()

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Name the clause in reports."""
        return self.path, None, self.clause.id


class ClauseFile(pytest.File):
    """One module of clauses."""

    def collect(self) -> Iterable[ClauseItem]:
        """Yield the module's clauses for this architecture."""
        from vmm.conformance.registry import all_clauses

        module = ".".join(("vmm", "conformance", "clauses", *self.path.relative_to(_CLAUSES).with_suffix("").parts))
        for clause in all_clauses():
            if clause.function.__module__ == module:
                yield ClauseItem.from_parent(self, name=clause.id, clause=clause)


def _runner(config: pytest.Config) -> Runner:
    from vmm.conformance.runner import Runner
    from vmm.kvm.system import KvmUnavailable

    if _RUNNER not in config.stash:
        runner = Runner(jobs=1)
        config.add_cleanup(runner.close)
        try:
            assert runner.host
        except KvmUnavailable as error:
            pytest.skip(str(error))
        config.stash[_RUNNER] = runner
    return config.stash[_RUNNER]


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Take the clause modules, and only those."""
    if file_path.suffix == ".py" and file_path.stem != "__init__" and file_path.is_relative_to(_CLAUSES):
        return ClauseFile.from_parent(parent, path=file_path)
    return None
