# SPDX-License-Identifier: Apache-2.0
"""The emulated machines: unmodified Debian kernels with their own KVM on emulated CPUs.

One module per concern: `packages` fetches, `cache` keeps, `kernels`, `userland` and `product` build what
goes into a machine, `qemu` and `bochs` know their emulator, `supervise` runs it, `kept` has it boot once for
many runs, `session` puts it all together and `cli` is the command line. Only the standard library is imported,
so `scripts/lab` works in a fresh clone.

`hosts` and `zoo` have the machines be other hosts, `support` tells what came of it, and `variants` has the package be
built by others: `scripts/matrix` and `scripts/test` use them.
"""

__all__: list[str] = []
