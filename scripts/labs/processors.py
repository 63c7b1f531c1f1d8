# SPDX-License-Identifier: Apache-2.0
"""What `--cpu` takes, the same for every machine: a model, vector lengths, and features to add and remove.

`[MODEL][,vq=N[,N]...][,+FEATURE][,-FEATURE]...`, all of it optional.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .errors import LabError

__all__ = ["Processor", "parse_processor", "vector_properties"]

_MAX_VQ = 16


@dataclass(frozen=True)
class Processor:
    """A processor as the user asks for it."""

    text: str = ""
    model: str = ""
    lengths: frozenset[int] = frozenset()  # of vectors, in units of 128 bits
    features: Mapping[str, bool] = field(default_factory=dict)  # to add, or to remove

    def named(self, on: bool) -> list[str]:
        """Return the features to add, or those to remove."""
        return [name for name, wanted in self.features.items() if wanted is on]

    def require_model(self, machine: str, models: Sequence[str]) -> None:
        """Raise LabError if the model is not among those that a machine's emulator has."""
        if self.model and self.model not in models:
            near = difflib.get_close_matches(self.model, models, 5, 0.5) or sorted(models)
            raise LabError(f"--cpu {self.text}: {machine} has no model {self.model}; it has {', '.join(near)}.")

    def require_no_lengths(self) -> None:
        """Raise LabError if vector lengths are asked for, which only sve has."""
        if self.lengths:
            raise LabError(f"--cpu {self.text}: a set of vector lengths, vq=, is for sve.")


def parse_processor(text: str) -> Processor:
    """Return what a `--cpu` asks for.

    >>> parse_processor("cortex-a57,-pmu").features
    {'pmu': False}
    """
    model, lengths, features = "", set[int](), {}
    in_set = False
    for word in text.split(","):
        if re.fullmatch(r"[+-][A-Za-z0-9_.-]+", word):
            in_set = False
            features[word[1:]] = word[0] == "+"
        elif re.fullmatch(r"vq=\d+", word) or (in_set and re.fullmatch(r"\d+", word)):
            in_set = True
            lengths.add(int(word.removeprefix("vq=")))
        elif re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", word) and not (model or lengths or features):
            model = word
        else:
            raise LabError(
                f"--cpu {text}: '{word}' is not understood; give a model, then vq=1,2,4 (sve), then features "
                "to add or remove: --cpu=MODEL,+this,-that."
            )
    return Processor(text, model, frozenset(lengths), features)


def vector_properties(lengths: frozenset[int]) -> dict[str, bool]:
    """Return QEMU's processor properties of a set of vector lengths in units of 128 bits.

    The architecture wants every power of two below the largest length, and so does QEMU.
    """
    text = "--cpu vq=" + ",".join(map(str, sorted(lengths)))
    largest = max(lengths)
    if largest > _MAX_VQ or min(lengths) < 1:
        raise LabError(f"{text}: vector lengths are 1 to {_MAX_VQ} units of 128 bits.")
    missing = {1 << power for power in range(5) if 1 << power < largest} - lengths
    if missing:
        more = ",".join(str(vq) for vq in sorted(missing))
        raise LabError(f"{text}: the architecture requires every power of two below the largest; add {more}.")
    return {f"sve{128 * vq}": vq in lengths for vq in range(1, _MAX_VQ + 1)}
