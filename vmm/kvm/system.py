# SPDX-License-Identifier: Apache-2.0
"""/dev/kvm itself: capabilities, and virtual machines."""

from __future__ import annotations

import errno
import grp
import os

from vmm._kvm import lib
from vmm.arch import ARCHITECTURE
from vmm.kvm.handle import Handle
from vmm.kvm.vm import VirtualMachine

__all__ = ["DEVICE", "Kvm", "KvmUnavailable"]

DEVICE = "/dev/kvm"
# On arm64 machine type 0 means guest physical addresses of so many bits, which some CPUs do not have.
_DEFAULT_IPA_BITS = 40
_CAP_ARM_VM_IPA_SIZE = 165


class KvmUnavailable(Exception):
    """There is no usable KVM here; the message is one sentence that says what to do."""


_HINTS = {
    errno.ENOENT: "{0} does not exist: load kvm_intel, kvm_amd or another KVM module, "
    "or enable virtualization in the firmware (or in the outer hypervisor)",
    errno.EACCES: "no permission to open {0}: join the group that owns it (here: {1}) or run as root",
    errno.EPERM: "opening {0} is forbidden here: allow the device in the container's or the service's policy",
    errno.ENODEV: "{0} exists but no KVM answers: load kvm_intel, kvm_amd or another KVM module",
    errno.ENXIO: "{0} exists but no KVM answers: load kvm_intel, kvm_amd or another KVM module",
    errno.EBUSY: "{0} is busy: another hypervisor holds the virtualization extensions",
}


def _hint(path: str, error: OSError) -> str:
    """Say why a device could not be opened, and what to do."""
    if error.errno == errno.EACCES and _on_nodev(path):
        # fs/namei.c, may_open_dev: for root too.
        return f"{path} is on a file system that is mounted nodev, where no device may be opened: mount it without"
    if error.errno == errno.EACCES and os.geteuid() == 0:
        return f"no permission to open {path}, although this is root: have the container or the sandbox pass it on"
    hint = _HINTS.get(error.errno or 0, "{0} could not be opened: " + str(error.strerror))
    return hint.format(path, _group(path) if error.errno == errno.EACCES else "")


def _on_nodev(path: str) -> bool:
    try:
        return bool(os.statvfs(path).f_flag & os.ST_NODEV)
    except OSError:
        return False


def _group(path: str) -> str:
    """Return the name of the group that owns a file, its number if it has no name here."""
    try:
        number = os.stat(path).st_gid
        return grp.getgrgid(number).gr_name
    except OSError:
        return "unknown"
    except KeyError:
        return str(number)


class Kvm(Handle):
    """An open /dev/kvm.

    >>> with Kvm() as kvm, kvm.create_vm() as vm:
    ...     vcpu = vm.create_vcpu(0)

    Raises KvmUnavailable if the device cannot be opened or speaks another API version than 12.
    """

    def __init__(self, path: str = DEVICE) -> None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise KvmUnavailable(_hint(path, error)) from error
        super().__init__(fd)
        try:
            self._check_version(path)
        except BaseException:
            self.close()
            raise

    def _check_version(self, path: str) -> None:
        try:
            version = self.api_version
        except OSError as error:
            raise KvmUnavailable(f"{path} does not answer KVM_GET_API_VERSION: it is not a KVM device") from error
        if version != lib.KVM_API_VERSION:
            raise KvmUnavailable(
                f"{path} speaks KVM API version {version}, not {lib.KVM_API_VERSION}: "
                "use a kernel with the stable KVM API (2.6.22 or later)"
            )

    @property
    def api_version(self) -> int:
        """KVM_GET_API_VERSION: 12 on every kernel since 2.6.22."""
        return self.ioctl_value(lib.KVM_GET_API_VERSION)

    @property
    def vcpu_mmap_size(self) -> int:
        """KVM_GET_VCPU_MMAP_SIZE: bytes to map of each vCPU fd."""
        return self.ioctl_value(lib.KVM_GET_VCPU_MMAP_SIZE)

    def create_vm(self, kind: int | None = None) -> VirtualMachine:
        """KVM_CREATE_VM; ``kind`` is the machine type, by default the one that is there on this host.

        That is 0, and on arm64 with addresses of less than 40 bits (Apple's CPUs) as many as there are.
        Source: Documentation/virt/kvm/api.rst, 4.2.
        """
        chosen = self._default_kind() if kind is None else kind
        return VirtualMachine(self.ioctl_value(lib.KVM_CREATE_VM, chosen), self.vcpu_mmap_size)

    def _default_kind(self) -> int:
        if ARCHITECTURE != "arm64":
            return 0
        bits = self.check_extension(_CAP_ARM_VM_IPA_SIZE)
        return bits if 0 < bits < _DEFAULT_IPA_BITS else 0
