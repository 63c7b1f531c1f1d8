/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Included before every source of KVM's: what the edits of the table use. */
#ifndef VMM_FAULTS_H
#define VMM_FAULTS_H

#ifdef __KVM_NVHE_HYPERVISOR__
/* What arm64's KVM runs at EL2 without VHE is linked by itself and has no variable of the kernel's. */
#define FAULT(number) 0
#else
#define FAULT(number) (__builtin_expect(vmm_fault == (number), 0))
#endif

extern int vmm_fault;
extern unsigned long long vmm_kept[8];

#endif
