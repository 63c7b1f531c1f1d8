/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Values of the KVM uapi that are newer than the oldest <linux/kvm.h> we build against (Linux 6.1,
 * as in Debian 12). Each stands behind #ifndef, so an installed header that knows it wins.
 * Numbers: include/uapi/linux/kvm.h and arch/{x86,arm64}/include/uapi/asm/kvm.h of Linux 7.2.
 */
#ifndef VMM_NEWER_H
#define VMM_NEWER_H

#include <linux/kvm.h>

/* 6.2 */
#ifndef KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP
#define KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP 225
#endif

/* 6.3 */
#ifndef KVM_ARM_SET_COUNTER_OFFSET
struct kvm_arm_counter_offset {
    __u64 counter_offset;
    __u64 reserved;
};
#define KVM_ARM_SET_COUNTER_OFFSET _IOW(KVMIO, 0xb5, struct kvm_arm_counter_offset)
#endif
#ifndef KVM_CAP_COUNTER_OFFSET
#define KVM_CAP_COUNTER_OFFSET 227
#endif

/* 6.7 */
#ifndef KVM_ARM_GET_REG_WRITABLE_MASKS
struct reg_mask_range {
    __u64 addr;
    __u32 range;
    __u32 reserved[13];
};
#define KVM_ARM_GET_REG_WRITABLE_MASKS _IOR(KVMIO, 0xb6, struct reg_mask_range)
#define KVM_ARM_FEATURE_ID_RANGE 0
#endif

/* 6.8 */
#ifndef KVM_SET_USER_MEMORY_REGION2
struct kvm_userspace_memory_region2 {
    __u32 slot;
    __u32 flags;
    __u64 guest_phys_addr;
    __u64 memory_size;
    __u64 userspace_addr;
    __u64 guest_memfd_offset;
    __u32 guest_memfd;
    __u32 pad1;
    __u64 pad2[14];
};
#define KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)
#endif
#ifndef KVM_MEM_GUEST_MEMFD
#define KVM_MEM_GUEST_MEMFD (1UL << 2)
#endif
#ifndef KVM_CREATE_GUEST_MEMFD
struct kvm_create_guest_memfd {
    __u64 size;
    __u64 flags;
    __u64 reserved[6];
};
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct kvm_create_guest_memfd)
#endif
#ifndef KVM_SET_MEMORY_ATTRIBUTES
struct kvm_memory_attributes {
    __u64 address;
    __u64 size;
    __u64 attributes;
    __u64 flags;
};
#define KVM_SET_MEMORY_ATTRIBUTES _IOW(KVMIO, 0xd2, struct kvm_memory_attributes)
#endif
#ifndef KVM_EXIT_MEMORY_FAULT
#define KVM_EXIT_MEMORY_FAULT 39
#endif
#ifndef KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES
#define KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES 230
#endif
#ifndef KVM_CAP_USER_MEMORY2
#define KVM_CAP_USER_MEMORY2 231
#endif
#ifndef KVM_CAP_MEMORY_FAULT_INFO
#define KVM_CAP_MEMORY_FAULT_INFO 232
#endif
#ifndef KVM_CAP_MEMORY_ATTRIBUTES
#define KVM_CAP_MEMORY_ATTRIBUTES 233
#endif
#ifndef KVM_CAP_GUEST_MEMFD
#define KVM_CAP_GUEST_MEMFD 234
#endif
#ifndef KVM_CAP_VM_TYPES
#define KVM_CAP_VM_TYPES 235
#endif

/* 6.11 */
#ifndef KVM_PRE_FAULT_MEMORY
struct kvm_pre_fault_memory {
    __u64 gpa;
    __u64 size;
    __u64 flags;
    __u64 padding[5];
};
#define KVM_PRE_FAULT_MEMORY _IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)
#endif
#ifndef KVM_CAP_PRE_FAULT_MEMORY
#define KVM_CAP_PRE_FAULT_MEMORY 236
#endif

/* 6.15 to 6.18 */
#ifndef KVM_CAP_ARM_WRITABLE_IMP_ID_REGS
#define KVM_CAP_ARM_WRITABLE_IMP_ID_REGS 239
#endif
#ifndef KVM_CAP_ARM_EL2
#define KVM_CAP_ARM_EL2 240
#endif
#ifndef KVM_CAP_ARM_EL2_E2H0
#define KVM_CAP_ARM_EL2_E2H0 241
#endif
#ifndef KVM_CAP_GUEST_MEMFD_FLAGS
#define KVM_CAP_GUEST_MEMFD_FLAGS 244
#endif
#ifndef GUEST_MEMFD_FLAG_MMAP
#define GUEST_MEMFD_FLAG_MMAP (1ULL << 0)
#endif
#ifndef GUEST_MEMFD_FLAG_INIT_SHARED
#define GUEST_MEMFD_FLAG_INIT_SHARED (1ULL << 1)
#endif

#ifdef __x86_64__
#include <asm/prctl.h>
#ifndef KVM_X86_QUIRK_SLOT_ZAP_ALL /* 6.12 */
#define KVM_X86_QUIRK_SLOT_ZAP_ALL (1 << 7)
#endif
#ifndef KVM_X86_QUIRK_STUFF_FEATURE_MSRS /* 6.14 */
#define KVM_X86_QUIRK_STUFF_FEATURE_MSRS (1 << 8)
#endif
#ifndef KVM_X86_QUIRK_IGNORE_GUEST_PAT /* 6.16 */
#define KVM_X86_QUIRK_IGNORE_GUEST_PAT (1 << 9)
#endif
#ifndef KVM_X86_QUIRK_VMCS12_ALLOW_FREEZE_IN_SMM /* by 7.2 */
#define KVM_X86_QUIRK_VMCS12_ALLOW_FREEZE_IN_SMM (1 << 10)
#endif
#ifndef KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT /* by 7.2 */
#define KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT (1 << 11)
#endif
#ifndef KVM_X86_GRP_SYSTEM /* 6.11 */
#define KVM_X86_GRP_SYSTEM 0
#endif
#ifndef KVM_X86_REG_TYPE_MSR /* 6.18 */
#define KVM_X86_REG_TYPE_MSR 2
#define KVM_X86_REG_TYPE_KVM 3
#define KVM_REG_GUEST_SSP 0
#endif
#endif

#ifdef __aarch64__
#include <asm/ptrace.h>
#if KVM_DIRTY_LOG_PAGE_OFFSET == 0 /* 6.2: arm64 has rings; before, <linux/kvm.h> itself says 0 */
#undef KVM_DIRTY_LOG_PAGE_OFFSET
#define KVM_DIRTY_LOG_PAGE_OFFSET 64
#endif
#ifndef KVM_ARM_VCPU_HAS_EL2 /* 6.3 */
#define KVM_ARM_VCPU_HAS_EL2 7
#endif
#ifndef KVM_ARM_VCPU_HAS_EL2_E2H0 /* 6.16 */
#define KVM_ARM_VCPU_HAS_EL2_E2H0 8
#endif
#endif

#endif
