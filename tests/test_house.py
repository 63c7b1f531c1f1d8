# SPDX-License-Identifier: Apache-2.0
"""The house: which room may import which, what every source begins with, and which trees mirror each other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import vmm
from tests.mutations.registry import all_mutations
from vmm.conformance.registry import all_clauses

ROOT = Path(vmm.__file__).parent
TESTS = Path(__file__).parent
ARCHITECTURES = ("x86", "arm64")
#: The floors, from the ground up: a module may import what is on a lower floor, and its own room.
FLOORS = [
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
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
#: What is at the root of the package; everything else has a room.
AT_THE_ROOT = {"__init__.py", "__main__.py", "arch.py", "_kvm.pyi", "py.typed"}
#: Folders of tests that are no room of the package's.
NO_ROOM = {"data", "fuzz", "kernels", "labs", "machines", "mutations", "plugins"}
#: What the lies of an architecture share.
VOCABULARY = {"__init__", "buffers", "lies"}


def module_name(path: Path) -> str:
    """The dotted name of a source file of the package."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name: str) -> str:
    """The room that a module is in: the package's part of its name."""
    return ".".join(name.split(".")[:2])


def architectures(name: str) -> set[str]:
    """The architecture that a module's folder or file names."""
    return set(ARCHITECTURES) & set(name.split("."))


SOURCES = {module_name(path): path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"}
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}


def imports(tree: ast.Module) -> set[str]:
    """The modules of this package that a source imports, wherever it does: for type checkers and in functions too."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in SOURCES or whole == "vmm._kvm" else node.module)
    return {name for name in found if name.split(".")[0] == "vmm" and name != "vmm"}


GRAPH = {name: imports(tree) for name, tree in TREES.items()}


# Rooms and floors


def test_every_module_is_in_a_room() -> None:
    assert {room(name) for name in SOURCES} | {"vmm._kvm"} == set(FLOOR)


def test_nothing_else_is_at_the_root_of_the_package() -> None:
    found = {path.name for path in ROOT.iterdir() if path.is_file() and path.suffix not in (".so", ".pyc")}
    assert found == AT_THE_ROOT


@pytest.mark.parametrize("name", SOURCES)
def test_imports_go_down(name: str) -> None:
    up = {target for target in GRAPH[name] if room(target) != room(name) and FLOOR[room(target)] >= FLOOR[room(name)]}
    assert not up


def test_no_imports_run_in_a_circle() -> None:
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


def test_an_architecture_is_known_only_where_the_folder_names_it() -> None:
    # Everything else asks vmm.arch.
    wrong = {
        (name, target)
        for name, targets in GRAPH.items()
        for target in targets
        if architectures(target) - architectures(name)
    }
    assert not wrong


def test_only_the_door_calls_the_kernel() -> None:
    # vmm_ioctl and its like, called elsewhere, would bypass trace and interposers.
    calls = re.compile(r"\blib\.vmm_(ioctl|ioctl_value|run|arch_prctl|arch_prctl_value)\b")
    assert {name for name, path in SOURCES.items() if calls.search(path.read_text())} == {"vmm.kvm.ioctl"}


# What every source has


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_has_its_licence_and_its_purpose(name: str) -> None:
    assert SOURCES[name].read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert ast.get_docstring(TREES[name])


@pytest.mark.parametrize("name", [name for name in SOURCES if not name.startswith("vmm.conformance.clauses")])
def test_a_module_exports_what_it_defines_each_once(name: str) -> None:
    tree = TREES[name]
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


def test_no_file_has_more_than_400_lines() -> None:
    folders = ("bindings", "guest_payloads", "scripts", "tests", "vmm")
    sources = [path for folder in folders for path in (TESTS.parent / folder).rglob("*.py")]
    assert not {str(path) for path in sources if len(path.read_text().splitlines()) > 400}


# What mirrors what


def clause_modules(arch: str) -> set[str]:
    """The names of the modules of an architecture's clauses."""
    return {path.stem for path in (ROOT / "conformance" / "clauses" / arch).glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_module_among_the_clauses_has_clauses(arch: str) -> None:
    assert clause_modules(arch) == {clause.function.__module__.split(".")[-1] for clause in all_clauses(arch)}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_module_of_clauses_has_a_module_of_lies_with_its_name(arch: str) -> None:
    lies = {path.stem for path in (TESTS / "mutations" / arch).glob("*.py")} - VOCABULARY
    assert lies == clause_modules(arch)


def area(module: str) -> str:
    """The area that the name of a module, of clauses or of lies, says: all of it, or what is before a topic."""
    return module.split(".")[-1].split("_")[0]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_clause_is_in_a_module_of_its_area(arch: str) -> None:
    astray = {clause.id for clause in all_clauses(arch) if area(clause.function.__module__) != clause.area}
    assert not astray


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_lie_is_in_a_module_of_the_area_of_one_of_its_clauses(arch: str) -> None:
    areas: dict[object, set[str]] = {}
    for lie in all_mutations(arch):
        areas.setdefault(lie.factory, set()).add(lie.clause.split(".")[0])
    astray = {lie.name for lie in all_mutations(arch) if area(lie.factory.__module__) not in areas[lie.factory]}
    assert not astray


def test_no_module_of_clauses_imports_another() -> None:
    among = {name: targets for name, targets in GRAPH.items() if name.startswith("vmm.conformance.clauses.")}
    assert not {name for name, targets in among.items() if targets & among.keys()}


def test_a_folder_of_tests_is_a_room_of_the_package() -> None:
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders - NO_ROOM <= {name.removeprefix("vmm.") for name in FLOOR}


def test_only_the_tests_of_the_whole_are_at_the_root_of_the_tests() -> None:
    of_a_room = {
        path.name: rooms
        for path in TESTS.glob("test_*.py")
        if (rooms := {name for name in imports(ast.parse(path.read_text())) if name in SOURCES})
        and path != Path(__file__)
    }
    assert not of_a_room
