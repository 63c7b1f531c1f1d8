# SPDX-License-Identifier: Apache-2.0
"""The machines `svm` (x86 with AMD's SVM) and `sve` (arm64 with SVE at EL2), both in QEMU's TCG."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .cache import Cache
from .errors import LabError, run_tool
from .hostroot import HostRoot
from .machines import COMMON_ARGUMENTS, Boot, Machine, Options
from .processors import vector_properties

__all__ = ["Sve", "Svm"]

_START_SECONDS = 60.0


class _Qemu(Machine):
    package: str
    program: str
    serial_arguments: str
    model = "max"
    processors = 1
    channel = "/dev/vport0p1"
    keeps_state = True

    def prepare(self) -> None:
        self._root = HostRoot(self.cache, self.options.emulator, [self.package])
        # `file:` came with QEMU 8.2; QEMU 11 no longer takes `fd:` with a file behind it.
        self.opens_state = self._root.version(self.package) >= (8, 2)
        if self.options.cpu is not None:
            self._try_processor()

    def _try_processor(self) -> None:
        """Have the emulator itself say whether it has the processor."""
        listing = self._ask("-cpu", "help").partition("\n\n")[0]
        self.options.processor.require_model(self.name, re.findall(r"^(?:x86)? +(\S+)", listing, re.MULTILINE))
        words = [*self.machine_options(), "-cpu", self.processor()]
        try:
            self._ask(*words, "-S", "-monitor", "stdio")
        except LabError as error:
            reasons = re.findall(r"^ +[^ ]*qemu-system-\S+ (?!warning)(.*)", str(error), re.MULTILINE)
            why = reasons[0].rstrip(".") if reasons else "QEMU does not start with it"
            raise LabError(f"--cpu {self.options.cpu} is not known to {self.name}: {why}.") from None

    def _ask(self, *words: str) -> str:
        """Return what the emulator prints when it is told to quit as soon as it has started."""
        command = [*self._start(), "-nodefaults", "-display", "none", *words]
        environment, what = self.environment(), "Starting QEMU"
        return run_tool(command, what, env=environment, stdin=b"quit\n", timeout=_START_SECONDS).decode()

    @property
    def _processors(self) -> int:
        return self.options.cpus or self.processors

    def _start(self) -> list[str]:
        """Return the words that start the emulator with its own files."""
        share = self._root.root / "usr/share"
        return [
            *self._root.command(f"usr/bin/{self.program}"),
            *("-L", str(share / "qemu"), "-L", str(share / "seabios")),
        ]

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
            *self._start(),
            *("-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"),
            *(
                "-cpu",
                self.processor(),
                "-smp",
                str(self._processors),
                "-m",
                str(self.options.memory or 1024),
            ),
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
            words += ["-incoming", f"{'file:/proc/self/fd/' if self.opens_state else 'fd:'}{boot.state}"]
        if boot.port is not None:
            words += ["-netdev", f"socket,id=cable,fd={boot.port.socket}"]
            words += ["-device", f"virtio-net-pci,netdev=cable,mac={boot.port.mac},romfile="]
        return words


class Svm(_Qemu):
    """x86-64 with SVM and nested paging; KVM's back end is kvm_amd."""

    name = "svm"
    arch = "amd64"
    # The last two: a process can have the kernel use its vector registers, by AF_ALG.
    modules = ("kvm_amd", "virtio_pci", "virtio_console", "algif_skcipher", "aesni_intel")
    power = "acpi"
    console_device = "/dev/ttyS0"
    package = "qemu-system-x86"
    program = "qemu-system-x86_64"
    serial_arguments = "ttyS0,115200"

    def processor(self) -> str:
        wanted = self.options.processor
        wanted.require_no_lengths()
        # CMPXCHG16B sometimes leaves garbage in EFLAGS in QEMU 7.2, and the kernel's allocator lives on it: without
        # this, one boot of ten ends in a double fault on a busy host.
        features = [f"{'+' if on else '-'}{name}" for name, on in wanted.features.items()]
        return ",".join([wanted.model or self.model, "+svm", "-cx16", *features])

    def machine_options(self) -> list[str]:
        # Two processors in one thread, as sve has them and for its reasons.
        thread = ",thread=single" if self._processors > 1 else ""
        return ["-accel", f"tcg{thread}", "-machine", "pc"]

    def kernel_arguments(self) -> str:
        return super().kernel_arguments() + " tsc=reliable no_timer_check"


_MTE = "mte"

#: the vector lengths of sve unless others are asked for
_LENGTHS = frozenset((1, 2, 3, 4))


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

    def __init__(self, cache: Cache, options: Options) -> None:
        super().__init__(cache, options)
        # What has a lone processor's timer go on in a state that is continued is its neighbour (machine/agent.c).
        self.keeps_state = self._processors > 1

    def prepare(self) -> None:
        super().prepare()
        if self.options.processor.features.get(_MTE) and self._root.version(self.package) < (8, 0):
            # Each page has but one tag there: target/arm/mte_helper.c loses the offset within the page.
            raise LabError(
                f"--cpu {self.options.cpu}: the memory tags of this QEMU overwrite each other; "
                "take a newer one's, --emulator trixie."
            )

    def processor(self) -> str:
        wanted = self.options.processor
        properties: dict[str, bool] = {}
        model, lengths = wanted.model or self.model, wanted.lengths
        if model == self.model:
            # Pointer authentication in the architected algorithm costs seconds at boot under emulation, and the
            # larger addresses of LPA2 cost a second for each virtual machine that ends.
            properties = {"pauth-impdef": wanted.features.get("pauth", True), "lpa2": False, "sve": True}
            lengths = lengths or _LENGTHS
        # Memory tags are the board's, which gives them a memory of their own.
        properties |= {name: on for name, on in wanted.features.items() if name != _MTE}
        if lengths and properties.get("sve", True):
            properties |= vector_properties(lengths)
        return ",".join([model, *_assignments(properties)])

    def machine_options(self) -> list[str]:
        tags = ",mte=on" if self.options.processor.features.get(_MTE) else ""
        return ["-accel", "tcg,thread=single", "-machine", f"virt,virtualization=on,gic-version=3{tags}"]

    def kernel_arguments(self) -> str:
        mode = f" kvm-arm.mode={self.options.mode}" if self.options.mode != "vhe" else ""
        # One thread has no use for two busy CPUs: a process is on the second if it asks for it. Clearing huge pages
        # that hardly anything is written to takes longer than their faults.
        return f"{super().kernel_arguments()} kpti=off isolcpus=domain,1 transparent_hugepage=madvise{mode}"


def _assignments(properties: Mapping[str, bool]) -> list[str]:
    return [f"{name}={'on' if value else 'off'}" for name, value in properties.items()]
