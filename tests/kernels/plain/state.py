# SPDX-License-Identifier: Apache-2.0
"""What calls alone show of a vCPU: each bit of each structure, each bit of each MSR, and what CPUID makes of both."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator

from tests.kernels.plain.guest import Guest
from tests.kernels.plain.kvm import Vcpu, Vm, call, feature_msr, msr_list, supported_cpuid

__all__ = ["SECTIONS", "dump", "msrs"]

See = Callable[[str, object], None]
STRUCTURES = (
    *("REGS", "SREGS", "SREGS2", "FPU", "XSAVE", "XSAVE2", "XCRS", "DEBUGREGS", "MP_STATE", "LAPIC"),
    *("VCPU_EVENTS", "NESTED_STATE"),
)
_MORE_MSRS = (
    *(0x10, 0x17, 0x1B, 0x34, 0x3A, 0x3B, 0x48, 0x49, 0x79, 0x8B, 0xCD, 0xCE, 0xCF, 0xE1, 0xE7, 0xE8, 0xFE),
    *(0x10A, 0x10B, 0x119, 0x11E, 0x122, 0x140, 0x174, 0x175, 0x176, 0x179, 0x17A, 0x17B, 0x186, 0x198, 0x199),
    *(0x19A, 0x1A0, 0x1A2, 0x1C4, 0x1C5, 0x1D7, 0x1D8, 0x1D9, 0x1DB, 0x1DC, 0x1DD, 0x1DE, 0x1FC),
    *range(0x200, 0x210),
    *(0x250, 0x258, 0x259),
    *range(0x268, 0x270),
    *(0x277, 0x280, 0x281, 0x2FF, 0x345),
    *range(0x38D, 0x391),
    0x3F1,
    *range(0x400, 0x40A),
    0x47F,
    0x480,
    *range(0x480, 0x494),
    0x4C1,
    0x560,
    0x570,
    0x571,
    *(
        0x600,
        0x606,
        0x611,
        0x619,
        0x639,
        0x641,
        0x680,
        0x6A0,
        0x6A2,
        *range(0x6A4, 0x6A9),
        0x6E0,
        0x802,
        0x808,
        0x80B,
    ),
    *(0x80D, 0x80F, 0x828, 0x830, 0x832, 0x83E, 0xD90, 0xDA0, 0x40000000, 0x40000001, 0x40000020, 0x40000021),
    *range(0x4B564D00, 0x4B564D0A),
    0x11,
    0x12,
    *range(0xC0000080, 0xC0000085),
    *range(0xC0000100, 0xC0000105),
    *range(0xC0000300, 0xC0000302),
    *range(0xC0010000, 0xC0010008),
    *(0xC0010010, 0xC0010015, 0xC001001A, 0xC001001B),
    *(0xC001001D, 0xC001001F, 0xC0010055, 0xC0010058, 0xC0010063, 0xC0010064, 0xC0010104, 0xC0010111, 0xC0010114),
    *(0xC0010115, 0xC0010117, 0xC001011F, 0xC0010130, 0xC0010140, 0xC0010141, *range(0xC0010200, 0xC001020C)),
    *(0xC0011020, 0xC0011021, 0xC0011022, 0xC0011023, 0xC0011029, 0xC001102A, 0xC00110A2, 0x12345678),
)
_ALL = (1 << 64) - 1


def msrs(kvm: int) -> list[int]:
    """Return the MSRs that KVM lists, and many that it knows or refuses."""
    listed = msr_list(kvm, "GET_MSR_INDEX_LIST") + msr_list(kvm, "GET_MSR_FEATURE_INDEX_LIST")
    return sorted({*listed, *_MORE_MSRS})


def dump(see: See, where: str, vcpu: Vcpu) -> None:
    """Write down everything that a vCPU says about itself."""
    for name in STRUCTURES:
        done, data = vcpu.get(name)
        see(f"{where}.{name}", done)
        for offset in range(0, len(data), 16):
            if any(data[offset : offset + 16]):
                see(f"{where}.{name}.{offset:#x}", data[offset : offset + 16].hex())
    for index in msrs(vcpu.vm.kvm):
        done, value = vcpu.get_msr(index)
        see(f"{where}.msr.{index:#x}", f"{done} {value:#x}")
    see(f"{where}.tsc_khz", vcpu.call("GET_TSC_KHZ"))
    _cpuid(see, f"{where}.cpuid", vcpu)
    listed = bytearray(8 + 8 * 1024)
    struct.pack_into("<Q", listed, 0, 1024)
    see(f"{where}.reg_list", vcpu.call("GET_REG_LIST", listed))
    see(f"{where}.reg_list.ids", listed.hex().rstrip("0"))
    for register in (0x2030000000020000 | 0x8, 0x2030000000030000, 0x20300000000200C0000080, 0x2030000000020010):
        read = bytearray(8)
        see(f"{where}.reg.{register:#x}", (_one_reg(vcpu, "GET_ONE_REG", register, read), read.hex()))


def _one_reg(vcpu: Vcpu, name: str, register: int, value: bytearray) -> int | str:
    address = ctypes.addressof(ctypes.c_char.from_buffer(value))
    return vcpu.call(name, bytearray(struct.pack("<QQ", register & _ALL, address)))


def _cpuid(see: See, where: str, vcpu: Vcpu) -> None:
    data = bytearray(8 + 40 * 256)
    for count in (1, 256):
        struct.pack_into("<I", data, 0, count)
        see(f"{where}.{count}", vcpu.call("GET_CPUID2", data))
    (found,) = struct.unpack_from("<I", data, 0)
    see(f"{where}.count", found)
    for number in range(min(found, 256)):
        entry = struct.unpack_from("<7I", data, 8 + 40 * number)
        see(f"{where}.{entry[0]:x}.{entry[1]:x}", " ".join(f"{word:x}" for word in entry))


def system(see: See) -> None:
    kvm = os.open("/dev/kvm", os.O_RDWR)
    vm = Vm()
    for number in range(1, 260):
        see(f"extension.{number}", (call(kvm, "CHECK_EXTENSION", number), call(vm.fd, "CHECK_EXTENSION", number)))
    for name in ("GET_MSR_INDEX_LIST", "GET_MSR_FEATURE_INDEX_LIST"):
        see(name, msr_list(kvm, name))
        see(f"{name}.short", msr_list(kvm, name, 2))
    for name in ("GET_SUPPORTED_CPUID", "GET_EMULATED_CPUID"):
        for count in (0, 1, 10, 256, 257):
            found = supported_cpuid(kvm, name, count)
            for offset in range(0, len(found), 40):
                see(f"{name}.{count}.{offset}", found[offset : offset + 40].hex())
        see(f"{name}.error", call(kvm, name, bytearray(8)))
    for index in msrs(kvm):
        see(f"feature.{index:#x}", feature_msr(kvm, index))
    for group in range(3):
        for attribute in range(4):
            for name in ("HAS_DEVICE_ATTR", "GET_DEVICE_ATTR"):
                see(f"{name}.{group}.{attribute}", _attribute(kvm, name, group, attribute))


def _attribute(fd: int, name: str, group: int, attribute: int, value: int = 0) -> tuple[int | str, str]:
    data = bytearray(struct.pack("<Q", value))
    address = ctypes.addressof(ctypes.c_char.from_buffer(data))
    done = call(fd, name, bytearray(struct.pack("<IIQQ", 0, group, attribute, address)))
    return done, data.hex()


def new(see: See) -> None:
    """vCPUs that are new, with and without CPUID and an interrupt controller, the second of a VM too."""
    for irqchip in (False, True):
        vm = Vm(irqchip=irqchip)
        for number in (0, 1):
            for cpuid in (False, True):
                vcpu = Vcpu(Vm(irqchip=irqchip) if number == 0 else vm, number + 2 * cpuid, cpuid=cpuid)
                dump(see, f"new.{irqchip}.{number}.{cpuid}", vcpu)


def _guests() -> Iterator[tuple[str, Guest]]:
    yield "reset", Guest()
    guest = Guest(irqchip=True)
    guest.enter("long")
    yield "long", guest


def bits(see: See) -> None:
    """Each bit of each structure, changed by itself: is it taken, and what is read then."""
    for where, guest in _guests():
        vcpu = guest.vcpu
        twice = ("REGS", "SREGS", "SREGS2", "VCPU_EVENTS")
        for name in (*twice, *(("FPU", "XCRS", "DEBUGREGS", "XSAVE", "LAPIC") if where == "long" else ())):
            base = vcpu.get(name)[1]
            see(f"bits.{where}.{name}.same", (vcpu.set(name, base), vcpu.get(name)[1] == base))
            for word, masks in _changes(name, base):
                line = []
                for mask in masks:
                    (old,) = struct.unpack_from("<Q", base, word)
                    changed = bytearray(base)
                    struct.pack_into("<Q", changed, word, old ^ mask)
                    done = vcpu.set(name, changed)
                    after = vcpu.get(name)[1]
                    line.append(f"{done}{'' if after == base else _difference(base, after)}")
                    if after != base:
                        vcpu.set(name, base)
                see(f"bits.{where}.{name}.{word:#x}", " ".join(line))
            see(f"bits.{where}.{name}.end", vcpu.get(name)[1].hex())
        for state in range(12):
            see(f"bits.{where}.mp.{state}", (vcpu.set("MP_STATE", struct.pack("<I", state)), vcpu.get("MP_STATE")))
        dump(see, f"bits.{where}.end", vcpu)


def _changes(name: str, base: bytes) -> Iterator[tuple[int, list[int]]]:
    """Yield the offsets of a structure's words, and what each is changed with."""
    single = [1 << bit for bit in range(64)]
    for word in range(0, len(base) - 7, 16 if name == "LAPIC" else 8):
        if name == "XSAVE":
            if word < 32 or 512 <= word < 576:
                yield word, single
            elif any(base[word : word + 8]) or word < 512 or word % 64 == 0:
                yield word, [1, _ALL]
        elif name == "SREGS" and word < 224 and word % 24 != 16 and word % 24 != 8:
            yield word, [1, 1 << 31, 1 << 32, 1 << 63, _ALL]
        elif (
            name in ("FPU", "LAPIC")
            or (name == "SREGS2" and word < 288)
            or (name == "VCPU_EVENTS" and word in (32, 40))
        ):
            yield word, [1, _ALL]
        else:
            yield word, [*single, _ALL]


def _difference(base: bytes, after: bytes) -> str:
    words = range(0, len(base) - 7, 8)
    changed = [
        (word, struct.unpack_from("<Q", base, word)[0] ^ struct.unpack_from("<Q", after, word)[0]) for word in words
    ]
    return "".join(f"+{word:x}:{mask:x}" for word, mask in changed if mask)


def msr_bits(see: See) -> None:
    """Each bit of each MSR, changed by itself."""
    for where, guest in _guests():
        vcpu = guest.vcpu
        for index in msrs(guest.vm.kvm):
            read, base = vcpu.get_msr(index)
            line = [f"{read} {base:#x}"]
            same = vcpu.set_msr(index, base if read == 1 else 0)
            masks = (
                [*(1 << bit for bit in range(0, 64, 1 if where == "long" else 4)), _ALL] if 1 in (read, same) else [1]
            )
            for mask in masks:
                done = vcpu.set_msr(index, base ^ mask)
                after = vcpu.get_msr(index)
                line.append(f"{done}" + ("" if after == (read, base) else f":{after[0]}:{after[1] ^ base:x}"))
                if after[1] != base:
                    vcpu.set_msr(index, base)
            see(f"msr.{where}.{index:#x}", " ".join(line))
        dump(see, f"msr.{where}.end", vcpu)


def attributes(see: See) -> None:
    for where, guest in _guests():
        fd = guest.vcpu.fd
        for attribute in range(3):
            see(f"attribute.{where}.{attribute}.has", _attribute(fd, "HAS_DEVICE_ATTR", 0, attribute))
            see(f"attribute.{where}.{attribute}.get", _attribute(fd, "GET_DEVICE_ATTR", 0, attribute))
            see(f"attribute.{where}.{attribute}.set", _attribute(fd, "SET_DEVICE_ATTR", 0, attribute, 0x123456789))
            see(f"attribute.{where}.{attribute}.then", _attribute(fd, "GET_DEVICE_ATTR", 0, attribute))
        for khz in (0, 1, 1000, 1000000, 2000000, 0x7FFFFFFF):
            see(f"attribute.{where}.khz.{khz}", (call(fd, "SET_TSC_KHZ", khz), call(fd, "GET_TSC_KHZ")))
            see(f"attribute.{where}.khz.{khz}.offset", _attribute(fd, "GET_DEVICE_ATTR", 0, 0)[0])
        capabilities = bytearray(8)
        call(guest.vm.kvm, "X86_GET_MCE_CAP_SUPPORTED", capabilities)
        (supported,) = struct.unpack("<Q", capabilities)
        see(f"attribute.{where}.mce", f"{supported:#x}")
        for value in (0, 1, supported, supported | 10, (supported & ~0xFF) | 32, (supported & ~0xFF) | 33, _ALL):
            see(
                f"attribute.{where}.mce.{value:#x}",
                call(fd, "X86_SETUP_MCE", bytearray(struct.pack("<Q", value & _ALL))),
            )
            see(
                f"attribute.{where}.mce.{value:#x}.msrs",
                [guest.vcpu.get_msr(i) for i in (0x179, 0x17B, 0x280, 0x400, 0x401)],
            )
        call(fd, "X86_SETUP_MCE", bytearray(struct.pack("<Q", (supported & ~0xFF) | 10)))
        for control in (0, _ALL):
            guest.vcpu.set_msr(0x17B, control)
            for status in (0, 1 << 63, 1 << 63 | 1 << 61, 1 << 63 | 1 << 57, _ALL):
                for bank in (0, 1, 9, 10, 255):
                    data = struct.pack("<QQQQB31x", status & _ALL, 0x1234, 0x5678, 5, bank)
                    name = f"attribute.{where}.mce.{control}.{status & _ALL:x}.{bank}"
                    see(name, call(fd, "X86_SET_MCE", bytearray(data)))
                    see(
                        f"{name}.msrs",
                        [guest.vcpu.get_msr(i) for i in (0x17A, 0x400, 0x401, 0x402, 0x403, 0x405, 0x425)],
                    )
                    see(f"{name}.events", guest.vcpu.get("VCPU_EVENTS")[1].hex())
        vector = bytearray(struct.pack("<Q", 0x1000))
        see(f"attribute.{where}.vapic", call(fd, "SET_VAPIC_ADDR", vector))
        see(f"attribute.{where}.tpr", call(fd, "TPR_ACCESS_REPORTING", bytearray(40)))
        see(f"attribute.{where}.ctrl", call(fd, "KVMCLOCK_CTRL"))
        for address in (0, 0x1000, 0x7FFF, 0x200000, 0x400000):
            found = bytearray(struct.pack("<Q16x", address))
            see(f"attribute.{where}.translate.{address:#x}", (call(fd, "TRANSLATE", found), found.hex()))


def copied(see: See) -> None:
    """A vCPU whose state is set from another's, as a migration does."""
    for where, guest in _guests():
        source, target = guest.vcpu, Guest(irqchip=where == "long").vcpu
        source.set("XCRS", struct.pack("<II", 1, 0) + struct.pack("<IIQ", 0, 0, 3) + bytes(368))
        data = bytearray(source.get("XSAVE")[1])
        data[32:512] = bytes(number * 7 % 251 for number in range(480))
        data[160 + 256 : 512] = bytes(96)
        data[512:520] = struct.pack("<Q", 3)
        source.set("XSAVE", data)
        source.set("DEBUGREGS", struct.pack("<6Q", 1, 2, 3, 4, 0xFFFF0FF1, 0x401) + bytes(80))
        for name in ("SREGS2", "REGS", "XCRS", "XSAVE", "DEBUGREGS", "LAPIC", "MP_STATE", "VCPU_EVENTS"):
            see(f"copied.{where}.{name}", target.set(name, source.get(name)[1]))
        for index in msrs(guest.vm.kvm):
            read, value = source.get_msr(index)
            if read == 1:
                see(f"copied.{where}.msr.{index:#x}", target.set_msr(index, value))
        dump(see, f"copied.{where}.source", source)
        dump(see, f"copied.{where}.target", target)


SECTIONS = (system, new, bits, msr_bits, attributes, copied)
