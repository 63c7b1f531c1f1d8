# SPDX-License-Identifier: Apache-2.0
"""The patcher: where edits go, what the source is with them, and that a compiled program has the faults."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.build import patched
from tests.kernels.patch import Edit, Misplaced, Span, apply, find_function, insert, locate
from tests.kernels.table import Fault

SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>

static int choose(int a);

/* choose() { } */
static int choose(int a)
{
	int b = 0;

	if (a > 10)
		b = 1;
	else if (a > 5 && a != 7)
		b = 2;
	else
		b = 3;
	for (int i = 0; i < 2; i++)
		if (i)
			b += 10;
	puts("; } {");
	return b +
		a;
}

static void other(int a) {
	printf("%d\n", choose(a)); /* choose( */
}

int main(int argc, char **argv)
{
	other(atoi(argv[argc - 1]));
	return 0;
}
"""
PRELUDE = "extern int vmm_fault;\n#define FAULT(n) (vmm_fault == (n))\n"
CHOSEN = """
int vmm_fault;
__attribute__((constructor)) static void on(void) { vmm_fault = atoi(getenv("FAULT")); }
"""
#: edit -> what choose(6), choose(7), choose(12) print with it
EDITS = {
    Edit("a.c", "choose", "skip", r"b = 2"): (16, 20, 23),
    Edit("a.c", "choose", "skip", r"b = 1"): (18, 20, 22),
    Edit("a.c", "choose", "before", r"return b", "b = 100;"): (106, 107, 112),
    Edit("a.c", "choose", "after", r"b \+= 10", "b += 5;"): (23, 25, 28),
    Edit("a.c", "choose", "value", r"a != 7", "1"): (18, 19, 23),
    Edit("a.c", "choose", "negate", r"a > 10"): (17, 18, 24),
    Edit("a.c", "choose", "entry", "", "return 1;"): (1, 1, 1),
    Edit("a.c", "choose", "value", r"else if \((a) > 5", "0"): (19, 20, 23),
    Edit("a.c", "other", "skip", "printf"): (None, None, None),
}
HONEST = (18, 20, 23)


def test_the_program_has_each_fault_and_no_other_when_it_is_on(tmp_path: Path) -> None:
    text = apply(SOURCE, list(enumerate(EDITS, start=1)))
    (tmp_path / "a.c").write_text(PRELUDE + text + CHOSEN)
    compiler: list[str | Path] = ["cc", "-w", "-o", tmp_path / "a", tmp_path / "a.c"]
    subprocess.run(compiler, check=True)

    def says(fault: int, argument: int) -> int | None:
        command: list[str | Path] = [tmp_path / "a", str(argument)]
        done = subprocess.run(command, env={"FAULT": str(fault)}, capture_output=True, text=True, check=True)
        numbers = [line for line in done.stdout.splitlines() if line.isdigit()]
        return int(numbers[0]) if numbers else None

    for fault, expected in enumerate((HONEST, *EDITS.values())):
        assert tuple(says(fault, argument) for argument in (6, 7, 12)) == expected, fault


def test_no_line_of_a_source_moves() -> None:
    text = apply(SOURCE, list(enumerate(EDITS, start=1)))
    assert len(text.splitlines()) == len(SOURCE.splitlines())


def test_a_function_is_its_definition_and_neither_a_declaration_nor_a_call_nor_a_comment() -> None:
    start, end = find_function(SOURCE, "choose")
    assert SOURCE[start:end].startswith("\n\tint b = 0;") and SOURCE[start:end].endswith("\t\ta;\n")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (Edit("a.c", "missing", "skip", "x"), "0 functions missing"),
        (Edit("a.c", "choose", "skip", "b = 4"), "0 times"),
        (Edit("a.c", "choose", "skip", "b = "), "4 times"),
        (Edit("a.c", "choose", "value", r"\(a > 10"), "no whole expression"),
        (Edit("a.c", "choose", "skip", r"for \(int i"), None),
        (Edit("a.c", "other", "skip", "nothing"), "0 times"),
    ],
)
def test_an_edit_has_exactly_one_whole_place(edit: Edit, reason: str | None) -> None:
    if reason is None:
        start, end = locate(SOURCE, edit)
        assert SOURCE[start:end].endswith("b += 10;")
        return
    with pytest.raises(Misplaced, match=reason):
        locate(SOURCE, edit)


def test_a_fault_without_a_place_is_left_out_with_the_reason_and_the_others_stay() -> None:
    edits = [
        Edit("a.c", "choose", "skip", "b = 2"),
        Edit("a.c", "choose", "skip", "b = 9"),
        Edit("b.c", "f", "skip", "x"),
    ]
    faults = [Fault(n, f"fault-{n}", "", ("a.*",), (edit,)) for n, edit in enumerate(edits, start=1)]
    texts, unplaced = patched({"a.c": SOURCE}, faults)
    assert unplaced == {"fault-2": "choose has 0 times 'b = 9'", "fault-3": "no file b.c"}
    assert "FAULT(1)" in texts["a.c"] and "FAULT(2)" not in texts["a.c"]


@st.composite
def nested(draw: st.DrawFn, start: int = 0, end: int = 40, depth: int = 0) -> list[tuple[int, int]]:
    """Spans of a text that lie beside or in each other."""
    found: list[tuple[int, int]] = []
    position = start
    while position < end and draw(st.booleans()):
        first = draw(st.integers(position, end))
        last = draw(st.integers(first, end))
        for _ in range(draw(st.integers(1, 2))):
            found.append((first, last))
        if depth < 3 and last > first:
            found += draw(nested(first, last, depth + 1))
        position = max(last, position + 1)
    return found


@given(st.text("ab;{}\n", min_size=40, max_size=40), nested())
def test_what_is_inserted_can_be_taken_away_again_and_is_nested(source: str, places: list[tuple[int, int]]) -> None:
    spans = [Span(first, last, f"<{number}>", f"</{number}>") for number, (first, last) in enumerate(places)]
    text = insert(source, spans)
    stack: list[int] = []
    rest = text
    for span in spans:
        rest = rest.replace(span.opening, "").replace(span.closing, "")
        inside = text[text.index(span.opening) + len(span.opening) : text.index(span.closing)]
        for other in spans:
            inside = inside.replace(other.opening, "").replace(other.closing, "")
        assert inside == source[span.start : span.end]
    assert rest == source
    for part in text.split("<")[1:]:
        number = int(part.split(">")[0].strip("/"))
        if part.startswith("/"):
            assert stack.pop() == number
        else:
            stack.append(number)
    assert not stack


@given(st.integers(0, 20), st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))
def test_edits_that_cross_are_refused(start: int, before: int, shared: int, behind: int) -> None:
    spans = [
        Span(start, start + before + shared, "(", ")"),
        Span(start + before, start + before + shared + behind, "[", "]"),
    ]
    with pytest.raises(Misplaced, match="cross"):
        insert("x" * 100, spans)
