# SPDX-License-Identifier: Apache-2.0
"""A stand-in for a host with AMX whose KVM gives none of it to guests, made of the host at hand: it prints results.

The kernel of such a host grants tile data to processes, and as guest permission too; KVM_SET_CPUID2 with tile data
enlarges a vCPU's area; but tiles are no component that its KVM supports, so KVM_SET_XSAVE with them is EINVAL, and
KVM_X86_XCOMP_GUEST_SUPP lacks them. Its kvm_pvm runs CPL 3 natively: LDTILECFG works there by the host's XCR0.

``python3 -m tests.conformance.amx_without_guests [honest|lies]`` runs each clause in a fork of its own and prints one
JSON object a run: the result's, and ``mutation``.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from tests.mutations.lies import Proceed, Shared, after_entry, both
from tests.mutations.registry import all_mutations, make
from tests.mutations.x86.buffers import offers
from vmm._kvm import ffi
from vmm.conformance import expectations
from vmm.conformance.context import Options
from vmm.conformance.execute import execute
from vmm.conformance.model import ClauseResult
from vmm.conformance.registry import Clause, all_clauses
from vmm.conformance.x86.common import HOST_XFD
from vmm.kvm.ioctl import Call, Interposer
from vmm.kvm.system import Kvm
from vmm.probe import host
from vmm.probe.host import Host
from vmm.x86 import cpuid, xsave
from vmm.x86.cpuid import Entry
from vmm.x86.xfeature import XTILE, XFeature

__all__ = ["about", "stand_in_host"]

_CONFIG, _DATA = 1 << XFeature.XTILECFG, 1 << XFeature.XTILEDATA
_SIZE = 2816 + 8192
# CPUID 0xD of a CPU with tiles: size, offset, ECX.
_SUBLEAVES = {XFeature.XTILECFG: (64, 2752, 2), XFeature.XTILEDATA: (8192, 2816, 6)}
_SOFTWARE = 464
_LIBC = ctypes.CDLL(None, use_errno=True)
_TIME_SCALE = 4.0


class _Stack(ctypes.Structure):
    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def _has_small_stack() -> bool:
    """Has this thread a signal stack without room for tile data?"""
    stack = _Stack()
    _LIBC.sigaltstack(None, ctypes.byref(stack))
    return not stack.flags & 2 and 0 < stack.size < _SIZE


def _address(argument: Any) -> int:
    return int(ffi.cast("uintptr_t", argument))


class Kernel:
    """What such a host's kernel answers: an interposer that asks the real one for everything else."""

    def __init__(self) -> None:
        self.guest = self.host = self.locked = False
        self.large: set[int] = set()

    def __call__(self, call: Call, proceed: Proceed) -> int:
        answer = getattr(self, "_" + call.name.lower(), None)
        return proceed() if answer is None else int(answer(call, proceed))

    @staticmethod
    def _with(bits: int, call: Call, proceed: Proceed) -> int:
        result = proceed()
        if result >= 0:
            call.argument[0] |= bits
        return result

    def _arch_get_xcomp_supp(self, call: Call, proceed: Proceed) -> int:
        return self._with(XTILE, call, proceed)

    def _arch_get_xcomp_perm(self, call: Call, proceed: Proceed) -> int:
        return self._with(_CONFIG | _DATA * self.host, call, proceed)

    def _arch_get_xcomp_guest_perm(self, call: Call, proceed: Proceed) -> int:
        return self._with(_CONFIG | _DATA * self.guest, call, proceed)

    def _arch_req_xcomp_perm(self, call: Call, proceed: Proceed) -> int:
        if call.argument != XFeature.XTILEDATA:
            return proceed()
        if not self.host and _has_small_stack():
            return -errno.ENOSPC
        self.host = True
        return 0

    def _arch_req_xcomp_guest_perm(self, call: Call, proceed: Proceed) -> int:
        if call.argument != XFeature.XTILEDATA:
            return proceed()
        if not self.guest and self.locked:
            return -errno.EBUSY
        self.guest = True
        return 0

    def _kvm_create_vcpu(self, call: Call, proceed: Proceed) -> int:
        result = proceed()
        self.locked = self.locked or result >= 0
        self.large.discard(result)
        return result

    def _kvm_set_cpuid2(self, call: Call, proceed: Proceed) -> int:
        if not offers(call) & _DATA:
            return proceed()
        if not self.guest:
            return -errno.EPERM
        entries = (call.argument.entries[number] for number in range(call.argument.nent))
        (leaf, *_) = (entry for entry in entries if (entry.function, entry.index) == (0xD, 0))
        offered = leaf.eax
        leaf.eax &= ~XTILE
        result = proceed()
        leaf.eax = offered
        if result >= 0:
            self.large.add(call.fd)
        return result

    def _kvm_get_xsave(self, call: Call, proceed: Proceed) -> int:
        return -errno.EINVAL if call.fd in self.large else self._read(call, proceed)

    def _kvm_get_xsave2(self, call: Call, proceed: Proceed) -> int:
        return self._read(call, proceed)

    def _read(self, call: Call, proceed: Proceed) -> int:
        result = proceed()
        if result < 0:
            return result
        address = _address(call.argument)
        ffi.cast("uint64_t *", address + _SOFTWARE)[0] |= XTILE
        return result if call.fd not in self.large else self._rest(address + xsave.LEGACY_SIZE, writing=True)

    def _kvm_set_xsave(self, call: Call, proceed: Proceed) -> int:
        if call.fd in self.large:
            failed = self._rest(_address(call.argument) + xsave.LEGACY_SIZE, writing=False)
            if failed:
                return failed
        return proceed()

    @staticmethod
    def _rest(address: int, *, writing: bool) -> int:
        """Fill what a large area has behind 4096 bytes with zeros, or read it: 0, or -EFAULT as the kernel would."""
        length = _SIZE - xsave.LEGACY_SIZE
        fd = os.open("/dev/zero", os.O_RDONLY) if writing else os.memfd_create("read")
        try:
            move = _LIBC.read if writing else _LIBC.write
            return 0 if move(fd, ctypes.c_void_p(address), ctypes.c_size_t(length)) == length else -errno.EFAULT
        finally:
            os.close(fd)


def _cpu_with_tiles() -> None:
    """Let CPUID 0xD of this process's CPU have tiles."""
    ask = cpuid.host

    def answer(function: int, index: int = 0) -> Entry:
        found = ask(function, index)
        if (function, index) == (0xD, 0):
            return replace(found, eax=found.eax | XTILE, ecx=max(found.ecx, _SIZE))
        if function == 0xD and index in _SUBLEAVES:
            size, offset, ecx = _SUBLEAVES[XFeature(index)]
            return replace(found, eax=size, ebx=offset, ecx=ecx, edx=0)
        return found

    cpuid.host = answer
    xsave.host_layout.cache_clear()
    xsave.largest_size.cache_clear()


def _exec_starts_anew(permitted: int) -> None:
    """What a clause executes asks the real kernel: let it report what that of such a host says after exec."""

    def run(command: Any, **_: Any) -> subprocess.CompletedProcess[str]:
        answer = {"guest_permitted": permitted, "request_errno": 0}
        return subprocess.CompletedProcess(command, 0, json.dumps(answer), "")

    subprocess.run = run  # type: ignore[assignment]


def _native_ldtilecfg(guest: Shared) -> None:
    """At CPL 3 LDTILECFG ran natively, by the host's XCR0: no fault was counted."""
    guest.set("values", 0, 15)


def stand_in_host(real: Host) -> Host:
    """Return the host that is stood in for: the real one's facts, with AMX for processes and kvm_pvm."""
    facts = real.facts
    changed = replace(
        facts,
        backend="kvm_pvm",
        xcr0=facts.xcr0 | XTILE,
        xcomp_supported=facts.xcomp_supported | XTILE,
        xcomp_guest_permitted=facts.xcomp_guest_permitted | _CONFIG,
    )
    return replace(real, facts=changed)


def about() -> list[Clause]:
    """The clauses on what a process may have of AMX, whatever KVM gives to guests."""
    return [clause for clause in all_clauses("x86") if HOST_XFD in clause.needs]


def _install(known: Host) -> Interposer:
    _cpu_with_tiles()
    _exec_starts_anew(known.facts.xcomp_guest_permitted)
    native = after_entry("ldtilecfg_once", _native_ldtilecfg, payload="amx", when=lambda guest: guest.user)
    return both(Kernel(), native)


def _run(clause: Clause, known: Host, mutation: str) -> ClauseResult:
    signal.alarm(int(clause.timeout * _TIME_SCALE))
    interposer = _install(known)
    if mutation:
        interposer = both(interposer, make(clause.id, mutation))
    return execute(clause, known, Options(time_scale=_TIME_SCALE), interposer=interposer)


def _in_a_fork(clause: Clause, known: Host, mutation: str) -> dict[str, Any]:
    """Run one clause, with a lie on top where ``mutation`` names one, in a process of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writer, json.dumps(_run(clause, known, mutation).to_json()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        text = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not text:
        return {"id": clause.id, "mutation": mutation, "verdict": "ERROR", "reason": f"ended with {status}"}
    result = expectations.apply(ClauseResult.from_json(json.loads(text)), expectations.load(known))
    return {**result.to_json(), "mutation": mutation}


def _runs(kind: str) -> Iterator[tuple[Clause, str]]:
    chosen = {clause.id: clause for clause in about()}
    if kind == "honest":
        yield from ((clause, "") for clause in chosen.values())
    else:
        yield from ((chosen[lie.clause], lie.name) for lie in all_mutations("x86") if lie.clause in chosen)


def main() -> int:
    """Print why this host cannot stand in, or the results of all runs."""
    with Kvm() as kvm:
        real = host.measure(kvm)
    facts = real.facts
    if None in (facts.xcomp_supported, facts.xcomp_guest_permitted, facts.guest_supported):
        print(json.dumps({"unusable": "this kernel knows nothing of dynamic xfeatures"}))
        return 0
    if facts.xcomp_supported & _DATA:
        print(json.dumps({"unusable": "this host has AMX: it need not be stood in for"}))
        return 0
    known = stand_in_host(real)
    for clause, mutation in _runs(sys.argv[1] if len(sys.argv) > 1 else "honest"):
        print(json.dumps(_in_a_fork(clause, known, mutation)), flush=True)
    return 0


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main())
