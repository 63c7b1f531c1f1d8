/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Which fault of the table is on: linked into kvm.ko, a parameter that may be changed while nothing runs. */
#include <linux/moduleparam.h>
#include <linux/kvm_types.h>

int vmm_fault;
EXPORT_SYMBOL_FOR_KVM_INTERNAL(vmm_fault);
module_param_named(fault, vmm_fault, int, 0644);

/* For faults that keep something where the kernel would have saved and restored it. */
unsigned long long vmm_kept[8];
EXPORT_SYMBOL_FOR_KVM_INTERNAL(vmm_kept);
