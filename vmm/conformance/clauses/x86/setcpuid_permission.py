# SPDX-License-Identifier: Apache-2.0
"""KVM_SET_CPUID2 that is refused for want of a permission."""

from __future__ import annotations

import errno

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import HOST_XFD, XCOMP_GUEST, XSAVE2, configured, tile_table, untiled_features
from vmm.x86.cpuid import get_cpuid, set_cpuid
from vmm.x86.registers import get_xcr0, set_xcr0
from vmm.x86.xfeature import XTILE
from vmm.x86.xsave import get_xsave


@clause("setcpuid.permission-refusal-keeps-old", arch="x86", needs=(HOST_XFD, XCOMP_GUEST, XSAVE2), info=True)
def refusal_keeps_old(context: Context) -> None:
    """A KVM_SET_CPUID2 refused with EPERM leaves the table, XCR0, the area and what XCR0 may have as they were.

    The documentation promises nothing after a failure.

    Source: arch/x86/kvm/cpuid.c, kvm_set_cpuid (the error path swaps back); Documentation/virt/kvm/api.rst 4.20.
    """
    vcpu = configured(context)
    value = untiled_features(context)
    set_xcr0(vcpu, value)
    before, length = get_cpuid(vcpu), len(get_xsave(vcpu).data)
    refused("KVM_SET_CPUID2 with XTILEDATA", errno.EPERM, set_cpuid, vcpu, tile_table(context))
    equal("differences after the refusal", before.compare(get_cpuid(vcpu)), [])
    equal("XCR0 after the refusal", get_xcr0(vcpu), value)
    equal("bytes of the area after the refusal", len(get_xsave(vcpu).data), length)
    refused("XCR0 with tiles after the refusal", errno.EINVAL, set_xcr0, vcpu, value | XTILE)
    refused("the same table again", errno.EPERM, set_cpuid, vcpu, tile_table(context))
