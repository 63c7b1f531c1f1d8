# SPDX-License-Identifier: Apache-2.0
"""A vCPU's state as a hypervisor: what is taken and read back of it, and a guest's guest."""

from __future__ import annotations

import struct
from collections.abc import Callable

from tests.kernels.plain.guest import CODE, DATA, Guest

__all__ = ["SECTIONS"]

See = Callable[[str, object], None]
_HEADER, _ALL = 128, (1 << 64) - 1
_SVM, _GUEST_MODE, _RUN_PENDING, _GIF_SET = 1, 1, 2, 1 << 8
_SVME = 1 << 12
_VMCB = 0x3000
_HOST_SAVE = 0x4000
_VM_HSAVE_PA, _FEATURE_CONTROL = 0xC0010117, 0x3A
_VMXE = 1 << 13
_STRIDE = 8


def nested(see: See) -> None:
    guest = Guest()
    vcpu = guest.vcpu
    guest.enter("long", efer=0x500 | _SVME)
    done, state = vcpu.get("NESTED_STATE")
    see("nested.get", (done, state[:_HEADER].hex()))
    for word in range(0, 40, 8):
        line = []
        for bit in range(64):
            changed = bytearray(state)
            struct.pack_into("<Q", changed, word, struct.unpack_from("<Q", state, word)[0] ^ 1 << bit)
            line.append(
                f"{vcpu.set('NESTED_STATE', changed)} {vcpu.get('NESTED_STATE')[1][:_HEADER].hex().rstrip('0')}"
            )
            vcpu.set("NESTED_STATE", state)
        see(f"nested.header.{word}", line)
    for size in (0, 1, 127, 128, 129, 4223, 4224, 4225, 8320, 8321):
        changed = bytearray(state)
        struct.pack_into("<I", changed, 4, size)
        see(f"nested.size.{size}", (vcpu.set("NESTED_STATE", changed), vcpu.call("GET_NESTED_STATE", changed)))
    if struct.unpack_from("<H", state, 2)[0] == _SVM:
        _svm(see, guest)
    else:
        _vmx(see, guest)


def _vmcb(guest: Guest) -> bytearray:
    """Return a VMCB for a guest's guest that goes on where a guest begins."""
    sregs = guest.vcpu.get("SREGS")[1]
    control = struct.unpack_from("<6Q", sregs, 224)
    vmcb = bytearray(4096)
    struct.pack_into("<I", vmcb, 0x0C, 1 << 24 | 1 << 31)  # HLT, shutdown
    struct.pack_into("<I", vmcb, 0x10, 3)  # VMRUN, VMMCALL
    struct.pack_into("<I", vmcb, 0x58, 1)  # ASID
    for number, attributes in enumerate((0xC93, 0xA9B, 0xC93, 0xC93, 0xC93, 0xC93)):
        struct.pack_into("<HHIQ", vmcb, 0x400 + 16 * number, 8 if number == 1 else 16, attributes, 0xFFFFFFFF, 0)
    struct.pack_into("<HHIQ", vmcb, 0x460, 0, 0, 39, struct.unpack_from("<Q", sregs, 192)[0])
    struct.pack_into("<HHIQ", vmcb, 0x480, 0, 0, 4095, struct.unpack_from("<Q", sregs, 208)[0])
    struct.pack_into("<HHIQ", vmcb, 0x490, 24, 0x8B, 0x67, 0x17000)
    struct.pack_into("<Q", vmcb, 0x4D0, 0x500 | _SVME)
    struct.pack_into("<QQQQQQQ", vmcb, 0x548, control[3], control[2], control[0], 0x400, 0xFFFF0FF0, 2, CODE)
    struct.pack_into("<Q", vmcb, 0x5D8, 0x1E0000)
    struct.pack_into("<Q", vmcb, 0x668, 0x0007040600070406)
    return vmcb


def _svm(see: See, guest: Guest) -> None:
    vcpu = guest.vcpu
    none = bytes(4224)
    base = vcpu.get("NESTED_STATE")[1][:_HEADER]
    vmcb = _vmcb(guest)
    running = bytearray(_HEADER + 4096)
    running[:_HEADER] = base
    struct.pack_into("<HHI", running, 0, _GUEST_MODE | _GIF_SET, _SVM, len(running))
    struct.pack_into("<Q", running, 8, _VMCB)
    running[_HEADER:] = vmcb
    outside = bytearray(none)
    outside[:_HEADER] = base
    struct.pack_into("<HHI", outside, 0, _GIF_SET, _SVM, _HEADER)
    for word in (*range(0, 0x100, _STRIDE), *range(0x400, 0x700, _STRIDE)):
        line = []
        for mask in (0, 1, 1 << 31, 1 << 63, _ALL):
            changed = bytearray(running)
            changed[0] |= _RUN_PENDING if mask == 1 else 0
            struct.pack_into("<Q", changed, _HEADER + word, struct.unpack_from("<Q", vmcb, word)[0] ^ mask)
            done = vcpu.set("NESTED_STATE", changed)
            after = vcpu.get("NESTED_STATE")[1]
            other = [at for at in range(_HEADER, 4224, 8) if after[at : at + 8] != changed[at : at + 8]]
            line.append(f"{done} {after[:24].hex()} {other if done == 0 else ''}")
            line.append(str(vcpu.set("NESTED_STATE", outside)))
        see(f"nested.vmcb.{word:#x}", line)
    guest.vm.memory[_VMCB : _VMCB + 4096] = bytes(vmcb)
    guest.enter("long", efer=0x500 | _SVME)
    see("nested.svm.hsave", vcpu.set_msr(_VM_HSAVE_PA, _HOST_SAVE))
    inner = b"\x0f\x20\xc1\x0f\x20\xe2\xb3\x07\x0f\x01\xd9"  # some of its state, VMMCALL
    for name, offset, value in (
        *(("plain", 0x5C, 0), ("asid0", 0x58, 0), ("cr0", 0x558, 0), ("efer", 0x4D0, 0), ("cr4", 0x548, 1 << 40)),
        *(
            ("dr6", 0x568, 1 << 40),
            ("dr7", 0x560, 1 << 40),
            ("event", 0xA8, 0x80000306),
            ("bad event", 0xA8, 0x80000106),
        ),
        *(("intercept", 0x10, 0), ("nested", 0x90, 2), ("virtual", 0x60, 1 << 24), ("pat", 0x668, _ALL)),
    ):
        changed = bytearray(vmcb)
        struct.pack_into("<Q", changed, offset, value)
        struct.pack_into("<Q", changed, 0x578, CODE + 0x100)
        guest.enter("long", efer=0x500 | _SVME)
        guest.start(b"\x0f\x01\xd8", rax=_VMCB)
        guest.vm.memory[CODE + 0x100 : CODE + 0x100 + len(inner)] = inner
        guest.vm.memory[_VMCB : _VMCB + 4096] = bytes(changed)
        see(f"nested.run.{name}", guest.go())
        for place in (*range(0, 0x100, 16), *range(0x400, 0x700, 16)):
            see(f"nested.run.{name}.{place:#x}", guest.vm.memory[_VMCB + place : _VMCB + place + 16].hex())
        see(f"nested.run.{name}.data", guest.vm.memory[DATA : DATA + 16].hex())


def _vmx(see: See, guest: Guest) -> None:
    vcpu = guest.vcpu
    see("nested.vmx.feature", vcpu.set_msr(_FEATURE_CONTROL, 5))
    guest.enter("long", cr4=0x620 | _VMXE)
    vmcs = bytearray(4096)
    struct.pack_into("<I", vmcs, 0, vcpu.get_msr(0x480)[1] & 0x7FFFFFFF)
    for vmxon in (0x3000, 0x3001, _ALL):
        for current in (0x4000, 0x3000, _ALL, 0x4001):
            for flags in (0, 1, 2, 3, 4, 1 << 9):
                for size in (_HEADER, _HEADER + 4096, _HEADER + 8192):
                    data = bytearray(struct.pack("<HHIQQHHIQ", flags, 0, size, vmxon, current, 0, 0, 0, 0))
                    data = data.ljust(_HEADER, b"\0") + vmcs + vmcs
                    done = vcpu.set("NESTED_STATE", data)
                    after = vcpu.get("NESTED_STATE")[1]
                    where = f"nested.vmx.{vmxon:x}.{current:x}.{flags}.{size}"
                    see(where, (done, after[:_HEADER].hex().rstrip("0")))
                    see(f"{where}.vmcs", after[_HEADER : _HEADER + 4096].hex().rstrip("0"))
    for code, name in ((b"\xf3\x0f\xc7\x33", "vmxon"), (b"\x0f\x01\xc4", "vmxoff")):
        guest.vm.memory[0x3000:0x3004] = bytes(vmcs[:4])
        see(f"nested.vmx.{name}", guest.run("long", code, cr4=0x620 | _VMXE))


SECTIONS = (nested,)
