/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The C shim: what must not, or need not, happen in Python.
 *
 * vmm_ioctl: ioctl(2) that returns -errno, so that nothing can disturb errno on the way to Python.
 * vmm_run: KVM_RUN with a deadline that cannot be missed, again and again while the guest only ticks.
 */
#ifndef VMM_SHIM_H
#define VMM_SHIM_H

#include <stddef.h>
#include <stdint.h>
#include <linux/kvm.h>

long vmm_ioctl(int fd, unsigned long request, void *argument);
long vmm_ioctl_value(int fd, unsigned long request, unsigned long argument);

/* Why vmm_run came back. Anything negative is -errno of KVM_RUN. */
#define VMM_RUN_EXIT 0     /* the guest left; kvm_run says why */
#define VMM_RUN_BUDGET 1   /* `budget` ticks were absorbed */
#define VMM_RUN_DEADLINE 2 /* `timeout_ns` passed; the vCPU can be run again */
#define VMM_RUN_STOPPED 3  /* vmm_kick was called */
#define VMM_RUN_SIGNAL 4   /* another signal arrived: the caller's handlers want to run */

/*
 * One vCPU's run loop. `tick` is where the guest writes when all it wants is an exit: an I/O port
 * on x86, an unbacked guest physical address on arm64; 0 absorbs nothing. With budget n the loop
 * returns at the n-th tick, left pending like any exit. `entries` counts KVM_RUN calls.
 */
struct vmm_run_control {
    int fd;
    struct kvm_run *run;
    uint64_t tick;
    uint64_t budget;
    uint64_t timeout_ns;
    uint64_t absorbed;
    uint64_t entries;
    int stop;
    int thread; /* who is inside vmm_run, 0 = nobody */
};

long vmm_run(struct vmm_run_control *control);

/* Make the vmm_run of this control, running in any thread or about to, return VMM_RUN_STOPPED. */
long vmm_kick(struct vmm_run_control *control);

/* The signal used for deadlines and kicks. */
int vmm_kick_signal(void);

/* Have the kernel kill this process when its parent dies; -ESRCH if it is dead already. */
long vmm_die_with_parent(int parent);

/* 1 + the index of the last byte that is not `poison`; 0 if all are. */
size_t vmm_written_length(const uint8_t *buffer, size_t size, uint8_t poison);

#ifdef __x86_64__
long vmm_arch_prctl(int code, void *argument);
long vmm_arch_prctl_value(int code, unsigned long argument);
void vmm_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t registers[4]);
uint64_t vmm_xgetbv(uint32_t index); /* only where vmm_has_osxsave() */
int vmm_has_osxsave(void);
/* This thread's own protection keys; only where the host has OSPKE. */
uint32_t vmm_rdpkru(void);
void vmm_wrpkru(uint32_t value);
/*
 * This thread's own tiles: load 64 bytes of TILECFG and 8 full tiles, store the 8 tiles, release them.
 * Only with the host permission for tile data; a tile instruction without it is SIGILL.
 */
void vmm_host_tiles_load(const uint8_t *config, const uint8_t *tiles);
void vmm_host_tiles_store(uint8_t *tiles);
void vmm_host_tiles_release(void);
/*
 * Stop another process, read its XSAVE area by PTRACE_GETREGSET (NT_X86_XSTATE) and let it go on. Returns the
 * number of bytes, or -errno.
 */
long vmm_ptrace_xstate(int pid, uint8_t *buffer, size_t size);
/* Install an alternate signal stack of `size` bytes; 0 removes it. Returns -errno. */
long vmm_sigaltstack(size_t size);
#endif

#ifdef __aarch64__
long vmm_prctl(int option, unsigned long argument);
#endif

#endif
