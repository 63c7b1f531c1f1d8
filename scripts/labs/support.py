# SPDX-License-Identifier: Apache-2.0
"""SUPPORT.md: what was recorded of the host profiles, as tables of kernels and processors.

A profile that differs from its machine in the processor's model and the kernel only is in the machine's first table;
any other condition puts it into the second.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .hosts import ALARMS, Profile
from .processors import parse_processor
from .releases import parse_kernel
from .session import MACHINES

__all__ = ["support"]

_MACHINES = {
    "svm": "AMD SVM with nested paging, in QEMU",
    "amx": "Intel VMX with AMX, XFD, AVX-512 and CET, and AMD's models, in Bochs with the project's patches",
    "sve": "arm64 at EL2 with SVE, in QEMU",
}
_COUNTED = ("PASS", "KNOWN", "SKIP")
_HEAD = """\
# Where the clauses were run

Made by `scripts/matrix --support > SUPPORT.md` from what is recorded in `scripts/labs/hosts.toml`; do not edit.

How the KVM of unmodified Debian kernels answers on the processors of the emulated machines (`scripts/lab`). A cell
counts PASS/KNOWN/SKIP. KNOWN is a failure that the expectations list with its reference, SKIP a precondition that is
not met there; INFO, which records and judges nothing, is the rest. Whatever else failed is named.
"""


def support(profiles: Sequence[Profile]) -> str:
    """Return the document of some profiles."""
    parts = [_HEAD]
    for machine in MACHINES:
        own = [profile for profile in profiles if profile.machine == machine]
        if own:
            parts.append(f"## `{machine}`: {_MACHINES[machine]}\n")
            parts += _machine(machine, own)
    return "\n".join(parts)


def _machine(machine: str, profiles: Sequence[Profile]) -> list[str]:
    plain: dict[tuple[str, str], list[Profile]] = {}
    others, missing, findings = [], [], []
    for profile in profiles:
        if not profile.totals:
            missing.append(profile)
        elif _plain(profile):
            plain.setdefault((_series(profile.release), _model(profile)), []).append(profile)
        else:
            others.append(profile)
        findings += [
            f"* `{profile.name}`: `{each.clause}` {each.verdict}: {each.reference}" for each in profile.findings
        ]
    parts = [_matrix(machine, plain)] if plain else []
    if others:
        rows = [[f"`{profile.name}`", profile.why, _number(profile.release), _cell(profile)] for profile in others]
        parts += [
            "Under other conditions:\n",
            _table(["profile", "what is special", "kernel", "/".join(_COUNTED)], rows),
        ]
    if findings:
        parts += ["What failed, and why:\n", "\n".join(findings) + "\n"]
    if missing:
        names = ", ".join(f"`{profile.name}`" for profile in missing)
        parts.append(f"Not recorded, because no archive served the kernel when the others were: {names}.\n")
    return parts


def _plain(profile: Profile) -> bool:
    """Whether a profile chooses a kernel and a model and nothing else; an emulator may go with the model."""
    processor = parse_processor(profile.cpu) if profile.cpu else None
    features = processor is not None and bool(processor.features or processor.lengths)
    other_emulator = bool(profile.emulator) and processor is None
    conditions = (
        *(profile.cpus, profile.mode, profile.memory, profile.parameters, profile.limits, profile.ignored),
        *(profile.blocked, profile.before, profile.clauses),
    )
    flavour = parse_kernel(profile.kernel).flavour
    return not (features or other_emulator or any(conditions)) and flavour == parse_kernel("sid").flavour


def _model(profile: Profile) -> str:
    return parse_processor(profile.cpu).model if profile.cpu else MACHINES[profile.machine].model


def _number(release: str) -> str:
    """The release without what the distribution adds: "7.2.13" of "7.2.13+deb14-cloud-amd64"."""
    match = re.match(r"\d+(\.\d+)*(-\d+)?", release)
    return match[0] if match else release


def _series(release: str) -> str:
    return ".".join(_number(release).split("-")[0].split(".")[:2])


def _order(number: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", number)]


def _cell(profile: Profile) -> str:
    """A profile's totals, and what failed in bold."""
    totals = profile.totals
    failed = [f"**{totals[verdict]} {verdict}**" for verdict in ALARMS if totals.get(verdict)]
    return ", ".join(["/".join(str(totals.get(verdict, 0)) for verdict in _COUNTED), *failed])


def _matrix(machine: str, plain: dict[tuple[str, str], list[Profile]]) -> str:
    """Rows are series, oldest first; columns are models, the machine's own first; a line of a cell is a release."""
    models = list(dict.fromkeys(model for _, model in plain))
    models.sort(key=lambda model: model != MACHINES[machine].model)
    rows = []
    for series in sorted({series for series, _ in plain}, key=_order):
        row = [f"**{series}**"]
        for model in models:
            cell = sorted(plain.get((series, model), []), key=lambda profile: _order(_number(profile.release)))
            row.append("<br>".join(f"{_number(profile.release)}: {_cell(profile)}" for profile in cell))
        rows.append(row)
    return _table(["kernel", *(f"`{model}`" for model in models)], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
