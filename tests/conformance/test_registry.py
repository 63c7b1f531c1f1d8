# SPDX-License-Identifier: Apache-2.0
"""The clause registry, the preconditions, and the layers of the package."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vmm
from vmm._kvm import lib
from vmm.arch import ARCHITECTURE
from vmm.conformance import registry
from vmm.conformance.needs import Need, capability, kernel, unmet
from vmm.conformance.registry import Clause, all_clauses, select
from vmm.probe.host import Host

MakeHost = Callable[..., Host]
AREAS = {
    "perm", "cpuid", "setcpuid", "xsave", "xcrs", "xfd", "amx", "mig", "pku", "cet", "reset", "init", "onereg", "pat",
    "mtrr", "cr0cd", "noncoh", "quirk", "dev", "memslot",
    "cap", "sve", "fp", "core", "reglist", "id", "sme", "guest", "host", "vm",
}  # fmt: skip
CLAUSES = all_clauses()
on_x86 = pytest.mark.skipif(ARCHITECTURE != "x86", reason=f"x86 clauses; this is {ARCHITECTURE}")


# The catalogue


@on_x86
def test_clauses_are_missing() -> None:
    assert len(CLAUSES) >= 90


def test_an_id_is_used_twice() -> None:
    assert len({clause.id for clause in CLAUSES}) == len(CLAUSES)


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.id)
def test_a_clause_is_badly_written(clause: Clause) -> None:
    assert re.fullmatch(r"[a-z0-9]+(\.[a-z0-9]+(-[a-z0-9]+)*)+", clause.id)
    assert clause.id.split(".")[0] in AREAS
    assert clause.arch == ARCHITECTURE
    assert clause.statement.endswith(".") and "\n" not in clause.statement and "Source:" not in clause.statement
    assert len(clause.source) > 10 and "Source:" not in clause.source
    assert clause.timeout > 0
    assert all(isinstance(need, Need) and str(need) for need in clause.needs)


def test_an_area_comes_in_pieces() -> None:
    # KTAP reports an area as one block, in the order of the clauses.
    areas = [clause.id.split(".")[0] for clause in CLAUSES]
    blocks = [area for number, area in enumerate(areas) if number == 0 or areas[number - 1] != area]
    assert len(blocks) == len(set(blocks))


def test_another_architecture_has_this_ones_clauses() -> None:
    assert not {clause.id for clause in all_clauses("riscv")}


# Choosing


def fake(identifier: str) -> Clause:
    """A clause that is not registered."""
    return Clause(identifier, lambda context: None, "x86", (), False, False, "S.", "here", 10.0)


SOME = [fake(name) for name in ("perm.a", "xsave.a", "xsave.size.b", "xcrs.c")]


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        ([], ["perm.a", "xsave.a", "xsave.size.b", "xcrs.c"]),
        (["xsave.*"], ["xsave.a", "xsave.size.b"]),
        (["xcrs.c", "perm.a"], ["perm.a", "xcrs.c"]),
        (["*.a", "perm.*"], ["perm.a", "xsave.a"]),
        (["x*.[bc]"], ["xsave.size.b", "xcrs.c"]),
        (["xsave.?"], ["xsave.a"]),
    ],
)
def test_a_pattern_chooses_other_clauses(patterns: list[str], chosen: list[str]) -> None:
    assert [clause.id for clause in select(patterns, SOME)] == chosen


@pytest.mark.parametrize("pattern", ["nothing.*", "PERM.A", "xsave", ""])
def test_a_pattern_that_matches_nothing_is_success(pattern: str) -> None:
    with pytest.raises(LookupError, match="no clause matches") as caught:
        select(["perm.*", pattern], SOME)
    assert repr(pattern) in str(caught.value.args[0])


def test_an_iterator_of_patterns_is_used_up() -> None:
    assert [clause.id for clause in select(iter(["xsave.*"]), SOME)] == ["xsave.a", "xsave.size.b"]


# Registering


@pytest.fixture
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Clause]]:
    clauses: dict[str, Clause] = {}
    monkeypatch.setattr(registry, "_clauses", clauses)
    yield clauses


def test_a_clause_loses_part_of_its_record(empty_registry: dict[str, Clause]) -> None:
    need = Need("luck", lambda host: (True, "luck is 1"))

    @registry.clause("perm.some", arch="x86", needs=(need,), info=True, dangerous=True, timeout=3.0)
    def some(context: object) -> None:
        """The first paragraph
        on two lines.

        More about it.

        Source: this file;
        and that one.

        An afterthought.
        """

    assert empty_registry["perm.some"] == Clause(
        "perm.some", some, "x86", (need,), True, True, "The first paragraph on two lines.",
        "this file; and that one.", 3.0,
    )  # fmt: skip


def test_a_second_clause_of_the_same_id_is_not_refused(empty_registry: dict[str, Clause]) -> None:
    def function(context: object) -> None:
        """Statement.

        Source: here.
        """

    registry.clause("perm.twice", arch="x86")(function)
    with pytest.raises(ValueError, match=r"perm\.twice is registered twice"):
        registry.clause("perm.twice", arch="x86")(function)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "A statement without more.",
        "A statement.\n\nSource:",
        pytest.param("Source: that"),
    ],
)
def test_a_clause_without_statement_or_source_is_not_refused(
    empty_registry: dict[str, Clause], text: str | None
) -> None:
    def function(context: object) -> None: ...

    function.__doc__ = text
    with pytest.raises(ValueError, match=r"perm\.bare: the docstring needs a statement and a 'Source:' line"):
        registry.clause("perm.bare", arch="x86")(function)
    assert not empty_registry


# Preconditions


def test_a_need_does_not_give_the_measured_value(make_host: MakeHost) -> None:
    host = make_host("6.1.128", capabilities={"KVM_CAP_XSAVE2": 0, "KVM_CAP_XCRS": 1})
    needs = (capability("KVM_CAP_XCRS"), capability("KVM_CAP_XSAVE2"), kernel("7.0"))
    assert unmet(needs, host) == "needs KVM_CAP_XSAVE2: KVM_CAP_XSAVE2 is 0"
    assert unmet(needs[2:], host) == "needs Linux 7.0: this kernel is 6.1.128"
    assert unmet(needs[:1], host) is None and unmet((), host) is None


@pytest.mark.parametrize(
    ("running", "met"), [("6.12.0", True), ("6.11.9", False), ("7.0-rc1", True), ("6.12.0-rc3", True)]
)
def test_a_kernel_need_is_misjudged(make_host: MakeHost, running: str, met: bool) -> None:
    assert kernel("6.12").measure(make_host(running))[0] is met


def test_a_need_is_measured_after_one_that_is_not_met(make_host: MakeHost) -> None:
    def never(host: Host) -> tuple[bool, str]:
        raise AssertionError("measured although an earlier need is not met")

    assert unmet((Need("first", lambda host: (False, "it is 3")), Need("second", never)), make_host())


@on_x86
def test_a_need_names_a_capability_that_nobody_measures() -> None:
    from vmm.probe.x86.facts import CAPABILITIES

    assert all(getattr(lib, name, number) == number for name, number in CAPABILITIES.items())
    for clause in CLAUSES:
        for need in clause.needs:
            if need.name.startswith("KVM_CAP_"):
                assert need.name in CAPABILITIES, clause.id


def test_a_module_of_clauses_is_used_by_nobody() -> None:
    folder = f"vmm.conformance.clauses.{ARCHITECTURE}"
    modules = {name for name in SOURCES if name.startswith(folder + ".")}
    helpers = modules - {clause.function.__module__ for clause in CLAUSES}
    assert helpers <= {target for name in modules for target in GRAPH[name]}


# Layers

ROOT = Path(vmm.__file__).parent
# The longest prefix counts; a module may import what is lower, and its own package.
LAYERS = [
    ("vmm._kvm", "vmm.arch"),
    ("vmm.kvm",),
    ("vmm.guest",),
    ("vmm.x86", "vmm.arm64"),
    ("vmm.probe", "vmm.state"),
    ("vmm.compat", "vmm.migration", "vmm.conformance"),
    ("vmm.report", "vmm.bench"),
    ("vmm.cli",),
    ("vmm.__main__",),
]
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}


def module_name(path: Path) -> str:
    """The dotted name of a source file of the package."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(name: str) -> str:
    """The entry of LAYERS that a module belongs to."""
    parts = name.split(".")
    prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in LEVELS), "")


SOURCES = {module_name(path): path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"}


def imports(tree: ast.Module) -> set[str]:
    """The modules of this package that a source imports, anywhere but under ``if TYPE_CHECKING``."""
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in SOURCES or whole == "vmm._kvm" else node.module)
    return {name for name in found if name.split(".")[0] == "vmm" and name != "vmm"}


GRAPH = {name: imports(ast.parse(path.read_text())) for name, path in SOURCES.items()}


def test_a_module_belongs_to_no_layer() -> None:
    assert [name for name in SOURCES if not layer(name)] == []


@pytest.mark.parametrize("name", SOURCES)
def test_an_import_goes_up(name: str) -> None:
    own = layer(name)
    up = {
        target for target in GRAPH[name]
        if layer(target) != own and LEVELS[layer(target)] >= LEVELS[own]
    }  # fmt: skip
    assert not up


def test_imports_run_in_a_circle() -> None:
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name in finished:
            return
        for target in GRAPH.get(name, ()):
            visit(target, (*path, name))
        finished.add(name)

    for name in GRAPH:
        visit(name, ())


def test_something_above_imports_an_architecture_by_name() -> None:
    # Only the clauses of an architecture and the rooms of a state that are named after one know it; everything else
    # asks vmm.arch.
    wrong = {
        (name, target)
        for name, targets in GRAPH.items()
        for target in targets
        if layer(target) in ("vmm.x86", "vmm.arm64")
        and layer(name) != layer(target)
        and not {"x86", "arm64"} & set(name.split("."))
    }
    assert not wrong


def test_only_the_door_calls_the_kernel() -> None:
    # vmm_ioctl and its like, called elsewhere, would pass trace and interposers by.
    calls = re.compile(r"\blib\.vmm_(ioctl|ioctl_value|run|arch_prctl|arch_prctl_value)\b")
    assert {name for name, path in SOURCES.items() if calls.search(path.read_text())} == {"vmm.kvm.ioctl"}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_lacks_its_licence_or_its_purpose(name: str) -> None:
    text = SOURCES[name].read_text()
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("name", [name for name in SOURCES if not name.startswith("vmm.conformance.clauses")])
def test_a_module_exports_what_it_has_not_or_in_disorder(name: str) -> None:
    tree = ast.parse(SOURCES[name].read_text())
    assigned = [
        node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    if not assigned:
        assert SOURCES[name].name in ("__init__.py", "__main__.py"), "no __all__"
        return
    exported = ast.literal_eval(assigned[0].value)
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            defined |= {part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            defined.add(node.target.id)
        elif isinstance(node, ast.ImportFrom):
            defined |= {alias.asname or alias.name for alias in node.names}
    assert len(exported) == len(set(exported))
    assert set(exported) <= defined
