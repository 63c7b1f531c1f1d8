# SPDX-License-Identifier: Apache-2.0
"""What each architecture says about its state: pieces, their structures, capabilities."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vmm.arch import ARCHITECTURE
from vmm.state.architecture import ARCHITECTURES, here, of
from vmm.state.errors import StateRefused
from vmm.state.piece import Structure


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_piece_is_captured_once_and_has_a_name_of_its_own(arch: str) -> None:
    names = [piece.name for piece in of(arch).PIECES]
    assert sorted(of(arch).CAPTURE_ORDER) == sorted(names) and len(set(names)) == len(names)
    assert not set(names) & set(of(arch).MACHINE)


def test_a_structure_has_its_size_in_the_kernels_header() -> None:
    from vmm._kvm import ffi

    found = [piece for piece in of(ARCHITECTURE).PIECES if isinstance(piece, Structure)]
    assert found
    for piece in found:
        assert piece.shape.smallest == piece.shape.largest == ffi.sizeof(f"struct {piece.struct}"), piece.name


def test_memory_tags_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from vmm.state.arm64 import parts

    monkeypatch.setattr(parts, "lib", SimpleNamespace(KVM_CAP_ARM_MTE=199))
    assert parts.capture_machine(SimpleNamespace(capabilities={})) == {}  # type: ignore[arg-type]
    with pytest.raises(StateRefused, match=r"KVM_CAP_ARM_MTE is enabled\): memory tags cannot be saved"):
        parts.capture_machine(SimpleNamespace(capabilities={199: ()}))  # type: ignore[arg-type]


def test_the_capabilities_of_a_state_are_those_of_the_kernels_header() -> None:
    from vmm._kvm import lib

    wanted = {"x86": ("KVM_CAP_EXCEPTION_PAYLOAD", "KVM_CAP_X86_TRIPLE_FAULT_EVENT"), "arm64": ()}[ARCHITECTURE]
    assert {getattr(lib, name) for name in wanted} == here().CAPABILITIES
