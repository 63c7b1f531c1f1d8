# SPDX-License-Identifier: Apache-2.0
"""The machines `svm` (x86 with AMD's SVM) and `sve` (arm64 with SVE at EL2), both in QEMU's TCG."""

from __future__ import annotations

import re

from .config import TOOL_SUITE
from .errors import LabError
from .hostroot import HostRoot
from .machines import COMMON_ARGUMENTS, Boot, Machine

__all__ = ["Sve", "Svm", "vector_properties"]

_MAX_VQ = 16


class _Qemu(Machine):
    package: str
    program: str
    serial_arguments: str
    processors = 1
    channel = "/dev/vport0p1"
    keeps_state = True

    def prepare(self) -> None:
        self._root = HostRoot(self.cache, TOOL_SUITE, [self.package])
        self.processor()

    def processor(self) -> str:
        """Return the argument of -cpu."""
        raise NotImplementedError

    def machine_options(self) -> list[str]:
        """Return the options that choose the board and its accelerator."""
        raise NotImplementedError

    def kernel_arguments(self) -> str:
        """Return the kernel's command line."""
        return f"console={self.serial_arguments} {COMMON_ARGUMENTS}"

    def environment(self) -> dict[str, str]:
        # The accelerator itself may be a module, looked for where an installed QEMU would have it.
        modules = next(self._root.root.glob("usr/lib/*-linux-gnu/qemu"), None)
        return {"QEMU_MODULE_DIR": str(modules)} if modules else {}

    def command(self, boot: Boot) -> list[str]:
        console = f"serial,id=console,path={boot.console}"
        if not boot.interactive:
            console = f"file,id=console,path={boot.console},append=on"
        words = [
            *self._root.command(f"usr/bin/{self.program}"),
            *(
                "-L",
                str(self._root.root / "usr/share/qemu"),
                "-L",
                str(self._root.root / "usr/share/seabios"),
            ),
            *("-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"),
            *("-cpu", self.processor(), "-smp", str(self.processors), "-m", str(self.options.memory or 1024)),
            *self.machine_options(),
            *("-chardev", console, "-serial", "chardev:console"),
            *("-chardev", f"socket,id=data,fd={boot.data}"),
            *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=data,name=lab"),
            *("-kernel", str(boot.kernel.image)),
            *("-append", f"{self.kernel_arguments()} {self.options.append}"),
        ]
        if boot.initrd is not None:
            words += ["-initrd", str(boot.initrd)]
        if boot.control is not None:
            words += ["-chardev", f"socket,id=control,fd={boot.control}", "-mon", "chardev=control,mode=control"]
        if boot.state is not None:
            words += ["-incoming", f"fd:{boot.state}"]
        if boot.port is not None:
            words += ["-netdev", f"socket,id=cable,fd={boot.port.socket}"]
            words += ["-device", f"virtio-net-pci,netdev=cable,mac={boot.port.mac},romfile="]
        return words


class Svm(_Qemu):
    """x86-64 with SVM and nested paging; KVM's back end is kvm_amd."""

    name = "svm"
    arch = "amd64"
    modules = ("kvm_amd", "virtio_pci", "virtio_console")
    power = "acpi"
    console_device = "/dev/ttyS0"
    package = "qemu-system-x86"
    program = "qemu-system-x86_64"
    serial_arguments = "ttyS0,115200"

    def processor(self) -> str:
        extra = self.options.cpu
        if extra is not None and not re.fullmatch(r"[+-][a-z0-9_.-]+(,[+-][a-z0-9_.-]+)*", extra):
            raise LabError(f"--cpu {extra} is not known to svm; give features to add or remove: --cpu=-pku,+la57.")
        # CMPXCHG16B sometimes leaves garbage in EFLAGS in QEMU 7.2, and the kernel's allocator lives on it: without
        # this, one boot of ten ends in a double fault on a busy host.
        return "max,+svm,-cx16" + (f",{extra}" if extra else "")

    def machine_options(self) -> list[str]:
        return ["-accel", "tcg", "-machine", "pc"]

    def kernel_arguments(self) -> str:
        return super().kernel_arguments() + " tsc=reliable no_timer_check"


class Sve(_Qemu):
    """arm64 with SVE, started at EL2, so that its KVM works with VHE or without."""

    name = "sve"
    arch = "arm64"
    # The last two: a process can have the kernel use its vector registers, by AF_ALG.
    modules = ("virtio_pci", "virtio_console", "algif_skcipher", "aes_ce_blk")
    power = "psci"
    console_device = "/dev/ttyAMA0"
    package = "qemu-system-arm"
    program = "qemu-system-aarch64"
    serial_arguments = "ttyAMA0"
    # What a guest keeps from one CPU to the next needs a second one. Both are in one thread: with a thread each, QEMU
    # 7.2 ends in an endless exception at EL2 once in a hundred times that a VMM, its guest and the kernel's crypto
    # share vector registers, and now and then a process dies of SIGSEGV.
    processors = 2
    one_thread = True

    def processor(self) -> str:
        # Pointer authentication in the architected algorithm costs seconds at boot under emulation, and the
        # larger addresses of LPA2 cost a second for each virtual machine that ends.
        return "max,pauth-impdef=on,lpa2=off,sve=on," + vector_properties(self.options.cpu or "vq=1,2,3,4")

    def machine_options(self) -> list[str]:
        return ["-accel", "tcg,thread=single", "-machine", "virt,virtualization=on,gic-version=3"]

    def kernel_arguments(self) -> str:
        mode = " kvm-arm.mode=nvhe" if self.options.mode == "nvhe" else ""
        # One thread has no use for two busy CPUs: a process is on the second if it asks for it. Clearing huge pages
        # that hardly anything is written to takes longer than their faults.
        return f"{super().kernel_arguments()} kpti=off isolcpus=domain,1 transparent_hugepage=madvise{mode}"


def vector_properties(spec: str) -> str:
    """Translate a vector-length set, "vq=1,2,4" in units of 128 bits, into QEMU's processor properties.

    The architecture wants every power of two below the largest length, and so does QEMU.
    """
    if not re.fullmatch(r"vq=\d+(,\d+)*", spec):
        raise LabError(f"--cpu {spec} is not known to sve; give a vector-length set such as --cpu vq=1,2,4.")
    lengths = {int(word) for word in spec.removeprefix("vq=").split(",")}
    largest = max(lengths)
    if largest > _MAX_VQ or min(lengths) < 1:
        raise LabError(f"--cpu {spec}: vector lengths are 1 to {_MAX_VQ} units of 128 bits.")
    missing = {1 << power for power in range(5) if 1 << power < largest} - lengths
    if missing:
        text = ",".join(str(vq) for vq in sorted(missing))
        raise LabError(f"--cpu {spec}: the architecture requires every power of two below the largest; add {text}.")
    return ",".join(f"sve{128 * vq}={'on' if vq in lengths else 'off'}" for vq in range(1, _MAX_VQ + 1))
