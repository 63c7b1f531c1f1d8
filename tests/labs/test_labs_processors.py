# SPDX-License-Identifier: Apache-2.0
"""What --cpu takes: models, vector lengths, features."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labs.errors import LabError
from labs.processors import parse_processor, vector_properties

WORDS = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,12}", fullmatch=True)


@settings(deadline=None)
@given(st.one_of(st.just(""), WORDS), st.sets(st.integers(1, 16)), st.dictionaries(WORDS, st.booleans(), max_size=4))
def test_what_is_written_is_what_is_read(model: str, lengths: set[int], features: dict[str, bool]) -> None:
    words = [model] if model else []
    words += ["vq=" + ",".join(map(str, sorted(lengths)))] if lengths else []
    words += [("+" if on else "-") + name for name, on in features.items()]
    if words:
        found = parse_processor(",".join(words))
        assert (found.model, found.lengths, found.features) == (model, frozenset(lengths), features)
        assert sorted(found.named(True) + found.named(False)) == sorted(features)


@pytest.mark.parametrize(
    "text", ["", ",", "vq=", "vq=x", "max,EPYC", "+pku,EPYC", "max,x=1", "vq=1,+a,2", "a b", "-"]
)
def test_what_is_not_a_processor_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(LabError, match=r"--cpu .*: '.*' is not understood; give .*\.$"):
        parse_processor(text)


def test_a_model_that_is_not_there_is_answered_with_those_that_are_near() -> None:
    models = ["EPYC", "EPYC-Milan", "EPYC-Rome", "phenom"]
    parse_processor("EPYC-Milan").require_model("svm", models)
    parse_processor("-pku").require_model("svm", models)
    with pytest.raises(LabError, match="svm has no model EPYC-Milam; it has EPYC-Milan, EPYC"):
        parse_processor("EPYC-Milam,-pku").require_model("svm", models)
    with pytest.raises(LabError, match="it has EPYC, EPYC-Milan, EPYC-Rome, phenom"):
        parse_processor("zzz").require_model("svm", models)


def test_vector_lengths_become_properties_for_every_length() -> None:
    properties = vector_properties(frozenset((1, 2, 4)))
    assert len(properties) == 16
    assert list(properties.items())[:4] == [("sve128", True), ("sve256", True), ("sve384", False), ("sve512", True)]


@pytest.mark.parametrize("lengths", [{0}, {1, 17}, {1, 3}, {2}])
def test_impossible_vector_lengths_are_refused(lengths: set[int]) -> None:
    with pytest.raises(LabError, match=r"^--cpu vq="):
        vector_properties(frozenset(lengths))
