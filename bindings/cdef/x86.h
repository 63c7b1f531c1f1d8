/* SPDX-License-Identifier: Apache-2.0 */
/* x86: <asm/kvm.h> and the x86 ioctls of <linux/kvm.h>. */

#define KVM_GET_SUPPORTED_CPUID ...
#define KVM_GET_EMULATED_CPUID ...
#define KVM_GET_SUPPORTED_HV_CPUID ...
#define KVM_GET_MSR_INDEX_LIST ...
#define KVM_GET_MSR_FEATURE_INDEX_LIST ...
#define KVM_GET_MSRS ...
#define KVM_SET_MSRS ...
#define KVM_SET_CPUID2 ...
#define KVM_GET_CPUID2 ...
#define KVM_GET_LAPIC ...
#define KVM_SET_LAPIC ...
#define KVM_GET_DEBUGREGS ...
#define KVM_SET_DEBUGREGS ...
#define KVM_GET_XSAVE ...
#define KVM_SET_XSAVE ...
#define KVM_GET_XSAVE2 ...
#define KVM_GET_XCRS ...
#define KVM_SET_XCRS ...
#define KVM_GET_SREGS2 ...
#define KVM_SET_SREGS2 ...
#define KVM_SET_TSS_ADDR ...
#define KVM_SET_IDENTITY_MAP_ADDR ...
#define KVM_GET_TSC_KHZ ...
#define KVM_SET_TSC_KHZ ...
#define KVM_GET_CLOCK ...
#define KVM_GET_IRQCHIP ...
#define KVM_SET_IRQCHIP ...
#define KVM_CREATE_PIT2 ...
#define KVM_GET_PIT2 ...
#define KVM_SET_PIT2 ...
#define KVM_SET_CLOCK ...
#define KVM_SMI ...
#define KVM_KVMCLOCK_CTRL ...
#define KVM_TPR_ACCESS_REPORTING ...
#define KVM_SET_VAPIC_ADDR ...
#define KVM_X86_GET_MCE_CAP_SUPPORTED ...
#define KVM_X86_SETUP_MCE ...
#define KVM_X86_SET_MCE ...
#define KVM_X86_SET_MSR_FILTER ...
#define KVM_GET_NESTED_STATE ...
#define KVM_SET_NESTED_STATE ...

#define KVM_CAP_EXT_CPUID ...
#define KVM_CAP_DEBUGREGS ...
#define KVM_CAP_XSAVE ...
#define KVM_CAP_XCRS ...
#define KVM_CAP_GET_TSC_KHZ ...
#define KVM_CAP_DISABLE_QUIRKS ...
#define KVM_CAP_DISABLE_QUIRKS2 ...
#define KVM_CAP_SPLIT_IRQCHIP ...
#define KVM_CAP_X2APIC_API ...
#define KVM_CAP_HYPERV_SYNIC2 ...
#define KVM_CAP_SYS_HYPERV_CPUID ...
#define KVM_CAP_EXT_EMUL_CPUID ...
#define KVM_CAP_MCE ...
#define KVM_CAP_ENFORCE_PV_FEATURE_CPUID ...
#define KVM_CAP_PIT2 ...
#define KVM_CAP_ADJUST_CLOCK ...
#define KVM_CAP_EXCEPTION_PAYLOAD ...
#define KVM_CAP_SREGS2 ...
#define KVM_CAP_XSAVE2 ...
#define KVM_CAP_SYS_ATTRIBUTES ...
#define KVM_CAP_X86_TRIPLE_FAULT_EVENT ...
#define KVM_CAP_X86_USER_SPACE_MSR ...
#define KVM_CAP_X86_MSR_FILTER ...
#define KVM_CAP_EXIT_ON_EMULATION_FAILURE ...

#define KVM_CPUID_FLAG_SIGNIFCANT_INDEX ...
#define KVM_SREGS2_FLAGS_PDPTRS_VALID ...
#define KVM_VCPUEVENT_VALID_NMI_PENDING ...
#define KVM_VCPUEVENT_VALID_SIPI_VECTOR ...
#define KVM_VCPUEVENT_VALID_SHADOW ...
#define KVM_VCPUEVENT_VALID_SMM ...
#define KVM_VCPUEVENT_VALID_PAYLOAD ...
#define KVM_VCPUEVENT_VALID_TRIPLE_FAULT ...
#define KVM_SYNC_X86_REGS ...
#define KVM_SYNC_X86_SREGS ...
#define KVM_SYNC_X86_EVENTS ...
#define KVM_X86_QUIRK_LINT0_REENABLED ...
#define KVM_X86_QUIRK_CD_NW_CLEARED ...
#define KVM_X86_QUIRK_LAPIC_MMIO_HOLE ...
#define KVM_X86_QUIRK_OUT_7E_INC_RIP ...
#define KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT ...
#define KVM_X86_QUIRK_FIX_HYPERCALL_INSN ...
#define KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS ...
#define KVM_X86_QUIRK_SLOT_ZAP_ALL ...
#define KVM_X86_QUIRK_STUFF_FEATURE_MSRS ...
#define KVM_X86_QUIRK_IGNORE_GUEST_PAT ...
#define KVM_X86_QUIRK_VMCS12_ALLOW_FREEZE_IN_SMM ...
#define KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT ...
#define KVM_X86_GRP_SYSTEM ...
#define KVM_X86_XCOMP_GUEST_SUPP ...
#define KVM_X86_REG_TYPE_MSR ...
#define KVM_X86_REG_TYPE_KVM ...
#define KVM_REG_GUEST_SSP ...

#define KVM_MSR_FILTER_READ ...
#define KVM_MSR_FILTER_WRITE ...
#define KVM_MSR_FILTER_DEFAULT_ALLOW ...
#define KVM_MSR_FILTER_DEFAULT_DENY ...
#define KVM_MSR_FILTER_MAX_BITMAP_SIZE ...
#define KVM_MSR_EXIT_REASON_FILTER ...

#define ARCH_GET_XCOMP_SUPP ...
#define ARCH_GET_XCOMP_PERM ...
#define ARCH_REQ_XCOMP_PERM ...
#define ARCH_GET_XCOMP_GUEST_PERM ...
#define ARCH_REQ_XCOMP_GUEST_PERM ...

struct kvm_regs {
    __u64 rax, rbx, rcx, rdx;
    __u64 rsi, rdi, rsp, rbp;
    __u64 r8, r9, r10, r11;
    __u64 r12, r13, r14, r15;
    __u64 rip, rflags;
};

struct kvm_segment {
    __u64 base;
    __u32 limit;
    __u16 selector;
    __u8 type;
    __u8 present, dpl, db, s, l, g, avl;
    __u8 unusable;
    __u8 padding;
};

struct kvm_dtable {
    __u64 base;
    __u16 limit;
    __u16 padding[3];
};

struct kvm_sregs {
    struct kvm_segment cs, ds, es, fs, gs, ss;
    struct kvm_segment tr, ldt;
    struct kvm_dtable gdt, idt;
    __u64 cr0, cr2, cr3, cr4, cr8;
    __u64 efer;
    __u64 apic_base;
    __u64 interrupt_bitmap[4];
};

struct kvm_sregs2 {
    struct kvm_segment cs, ds, es, fs, gs, ss;
    struct kvm_segment tr, ldt;
    struct kvm_dtable gdt, idt;
    __u64 cr0, cr2, cr3, cr4, cr8;
    __u64 efer;
    __u64 apic_base;
    __u64 flags;
    __u64 pdptrs[4];
};

struct kvm_fpu {
    __u8 fpr[8][16];
    __u16 fcw;
    __u16 fsw;
    __u8 ftwx;
    __u8 pad1;
    __u16 last_opcode;
    __u64 last_ip;
    __u64 last_dp;
    __u8 xmm[16][16];
    __u32 mxcsr;
    __u32 pad2;
};

struct kvm_msr_entry {
    __u32 index;
    __u32 reserved;
    __u64 data;
};

struct kvm_msrs {
    __u32 nmsrs;
    __u32 pad;
    struct kvm_msr_entry entries[];
};

struct kvm_msr_list {
    __u32 nmsrs;
    __u32 indices[];
};

struct kvm_msr_filter_range {
    __u32 flags;
    __u32 nmsrs;
    __u32 base;
    __u8 *bitmap;
};

struct kvm_msr_filter {
    __u32 flags;
    struct kvm_msr_filter_range ranges[16];
};

struct kvm_cpuid_entry2 {
    __u32 function;
    __u32 index;
    __u32 flags;
    __u32 eax;
    __u32 ebx;
    __u32 ecx;
    __u32 edx;
    __u32 padding[3];
};

struct kvm_cpuid2 {
    __u32 nent;
    __u32 padding;
    struct kvm_cpuid_entry2 entries[];
};

struct kvm_vcpu_events {
    struct {
        __u8 injected;
        __u8 nr;
        __u8 has_error_code;
        __u8 pending;
        __u32 error_code;
    } exception;
    struct {
        __u8 injected;
        __u8 nr;
        __u8 soft;
        __u8 shadow;
    } interrupt;
    struct {
        __u8 injected;
        __u8 pending;
        __u8 masked;
        __u8 pad;
    } nmi;
    __u32 sipi_vector;
    __u32 flags;
    struct {
        __u8 smm;
        __u8 pending;
        __u8 smm_inside_nmi;
        __u8 latched_init;
    } smi;
    struct {
        __u8 pending;
    } triple_fault;
    __u8 reserved[26];
    __u8 exception_has_payload;
    __u64 exception_payload;
};

struct kvm_sync_regs {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_vcpu_events events;
};

struct kvm_debugregs {
    __u64 db[4];
    __u64 dr6;
    __u64 dr7;
    __u64 flags;
    __u64 reserved[9];
};

/* The legacy 4096-byte view; larger areas are handled as bytes, their size being the vCPU's. */
struct kvm_xsave {
    __u32 region[1024];
    ...;
};

struct kvm_xcr {
    __u32 xcr;
    __u32 reserved;
    __u64 value;
};

struct kvm_xcrs {
    __u32 nr_xcrs;
    __u32 flags;
    struct kvm_xcr xcrs[16];
    __u64 padding[16];
};

struct kvm_clock_data {
    __u64 clock;
    __u32 flags;
    __u32 pad0;
    __u64 realtime;
    __u64 host_tsc;
    __u32 pad[4];
};

/* The chip, one of three, is handled as bytes. */
struct kvm_irqchip {
    __u32 chip_id;
    __u32 pad;
    ...;
};

struct kvm_x86_mce {
    __u64 status;
    __u64 addr;
    __u64 misc;
    __u64 mcg_status;
    __u8 bank;
    __u8 pad1[7];
    __u64 pad2[3];
};

struct kvm_pit_config {
    __u32 flags;
    __u32 pad[15];
};

struct kvm_pit_channel_state {
    __u32 count;
    __u16 latched_count;
    __u8 count_latched;
    __u8 status_latched;
    __u8 status;
    __u8 read_state;
    __u8 write_state;
    __u8 write_latch;
    __u8 rw_mode;
    __u8 mode;
    __u8 bcd;
    __u8 gate;
    __s64 count_load_time;
};

struct kvm_pit_state2 {
    struct kvm_pit_channel_state channels[3];
    __u32 flags;
    __u32 reserved[9];
};

struct kvm_lapic_state {
    char regs[1024];
};

/* shim_x86.h */
long vmm_arch_prctl(int code, void *argument);
long vmm_arch_prctl_value(int code, unsigned long argument);
void vmm_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t registers[4]);
uint64_t vmm_xgetbv(uint32_t index);
int vmm_has_osxsave(void);
long vmm_sigaltstack(size_t size);
uint32_t vmm_rdpkru(void);
void vmm_wrpkru(uint32_t value);
void vmm_host_tiles_load(const uint8_t *config, const uint8_t *tiles);
void vmm_host_tiles_store(uint8_t *tiles);
void vmm_host_tiles_release(void);
long vmm_host_tiles_first_uses(const uint8_t *config, const uint8_t *tiles, uint64_t *line);

struct vmm_signal_frames {
    uint64_t count;
    uint64_t size;
    uint64_t extended;
    uint64_t features;
};

long vmm_measure_frames(int number, struct vmm_signal_frames *where);
long vmm_ptrace_xstate(int pid, uint8_t *buffer, size_t size);

#define VMM_HOST_AREA ...

struct vmm_host_vectors {
    const uint8_t *given;
    uint8_t *observed;
    uint64_t features;
    uint64_t calls;
};

long vmm_yield_with_vectors(const struct vmm_host_vectors *vectors);

struct vmm_own_shadow {
    uint64_t value;
    uint64_t before;
    uint64_t after;
    uint64_t read;
};

long vmm_own_shadow_stack(void);

struct kvm_tpr_access_ctl {
    __u32 enabled;
    __u32 flags;
    __u32 reserved[8];
};

struct kvm_vapic_addr {
    __u64 vapic_addr;
};

struct kvm_translation {
    __u64 linear_address;
    __u64 physical_address;
    __u8 valid;
    __u8 writeable;
    __u8 usermode;
    __u8 pad[5];
};

struct kvm_guest_debug_arch {
    __u64 debugreg[8];
};

struct kvm_guest_debug {
    __u32 control;
    __u32 pad;
    struct kvm_guest_debug_arch arch;
};
#define KVM_GUESTDBG_ENABLE ...
#define KVM_GUESTDBG_SINGLESTEP ...
#define KVM_GUESTDBG_USE_HW_BP ...
#define KVM_GUESTDBG_INJECT_DB ...
#define KVM_GUESTDBG_INJECT_BP ...
