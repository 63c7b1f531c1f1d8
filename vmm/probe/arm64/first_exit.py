# SPDX-License-Identifier: Apache-2.0
"""Whether a guest gets anywhere at all: two instructions with the MMU on, and no payload."""

from __future__ import annotations

from vmm.arm64 import boot
from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import PC, x
from vmm.arm64.vcpu import Feature, write
from vmm.kvm.exits import Exit, MmioWrite
from vmm.kvm.system import Kvm

__all__ = ["FIRST_EXIT", "first_exit"]

_MEMORY, _CODE, _VECTORS = 2 << 20, 0x8000, 0x10000
# STR X0, [X1]; B .
_INSTRUCTIONS = (0xF9000020, 0x14000000)

#: how it leaves: a store to addresses that are mapped as a device's and have no memory
FIRST_EXIT = MmioWrite(0xD000_0000, 8, 0x0123_4567_89AB_CDEF)


def first_exit(kvm: Kvm, timeout: float) -> Exit:
    """Run a guest with its MMU on to its first exit, FIRST_EXIT where nothing is wrong. Raises KvmError.

    Before it executes anything KVM has to resolve a fault at stage 2 for each of the guest's page tables: it learns
    their addresses in another way than that of an access.
    """
    with kvm.create_vm() as vm:
        memory = vm.add_memory(_MEMORY)
        boot.write_tables(memory)
        memory.write(_CODE, b"".join(word.to_bytes(4, "little") for word in _INSTRUCTIONS))
        vcpu = vm.create_vcpu()
        vcpus.init(vcpu, Feature.PSCI_0_2)
        boot.enter(vcpu, _VECTORS)
        for register, value in ((PC, _CODE), (x(0), FIRST_EXIT.value), (x(1), FIRST_EXIT.address)):
            write(vcpu, register, value)
        return vcpu.run(timeout)
