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
 * returns at the n-th tick, left pending like any exit. `entries` counts KVM_RUN calls. `vectors`, if not
 * NULL, is what KVM_RUN is to find in this thread's own registers, see below.
 */
struct vmm_host_vectors;
struct vmm_own_shadow;
struct vmm_run_control {
    int fd;
    struct kvm_run *run;
    const struct vmm_host_vectors *vectors;
    uint64_t tick;
    uint64_t budget;
    uint64_t timeout_ns;
    uint64_t absorbed;
    uint64_t entries;
    int stop;
    int thread; /* who is inside vmm_run, 0 = nobody */
    int no_timer; /* the error is the deadline's timer's: KVM_RUN was not called */
    struct vmm_own_shadow *shadow; /* x86: if not NULL, the thread has a shadow stack of its own around KVM_RUN */
};

long vmm_run(struct vmm_run_control *control);

/* Make the vmm_run of this control, running in any thread or about to, return VMM_RUN_STOPPED. */
long vmm_kick(struct vmm_run_control *control);

/* The signal used for deadlines and kicks. */
int vmm_kick_signal(void);

/* Have the kernel kill this process when its parent dies, -ESRCH if it is dead already; with 0, no more. */
long vmm_die_with_parent(int parent);

/* fork(2), and nothing of what Python does before and after it; the caller has one thread. -errno if it fails. */
long vmm_fork(void);

/* Have the parent trace this process; -errno where that is not allowed. */
long vmm_trace_me(void);

/* 1 + the index of the last byte that is not `poison`; 0 if all are. */
size_t vmm_written_length(const uint8_t *buffer, size_t size, uint8_t poison);

/*
 * Write back and invalidate every cache line of `count` ranges, pairs of an offset from address `base` and a length in
 * bytes, fenced on both sides: a load after it reads memory, and memory has what was stored before it. Returns
 * -EOPNOTSUPP on a CPU without such an instruction. vmm_flush_line: bytes of a line, 0 without; vmm_flush_name:
 * the instruction, NULL without.
 */
long vmm_flush(uint64_t base, const uint64_t *ranges, size_t count);
size_t vmm_flush_line(void);
const char *vmm_flush_name(void);

/* Guest memory page by page: shim_pages.c. The page of migration, on every host. */
#define VMM_PAGE 4096

struct vmm_page_digest {
    uint64_t low;
    uint64_t high;
};

/* `count` pages from `first` on, all of them zeros unless `full`. Also the layout on the line, little-endian. */
struct vmm_page_run {
    uint32_t first;
    uint32_t count;
    uint32_t full;
};

/* A region's memory, its dirty bitmap (bits of `pages_per_bit` pages), the key of 512 words, a digest a page. */
struct vmm_scan {
    const uint8_t *memory;
    const uint64_t *bitmap;
    const uint64_t *key;
    struct vmm_page_digest *digests;
    uint64_t next;
    uint64_t end;
    uint64_t pages_per_bit;
};

/*
 * Walk the dirty pages from `next` on and describe them as runs; those of zeros get their digest. Stops at `most_runs` runs or `most_pages` pages
 * with data and leaves `next` where to continue. Returns the number of runs, 0 at the end.
 */
size_t vmm_scan_pages(struct vmm_scan *scan, struct vmm_page_run *runs, size_t most_runs, uint64_t most_pages);

/* The pages with data in a stranger's runs; -EINVAL unless they ascend within `pages`. */
long vmm_check_runs(const struct vmm_page_run *runs, size_t count, uint64_t pages);

/*
 * Runs of a region that are on their way over a socket. `block_pages` are digested in one go, before they are sent
 * or after they have come. The last three say how far it is; they begin as 0.
 */
struct vmm_transfer {
    int fd;
    uint8_t *memory;
    const uint64_t *key;
    struct vmm_page_digest *digests;
    const struct vmm_page_run *runs;
    size_t count;
    uint64_t block_pages;
    size_t run;
    uint64_t page;
    uint64_t done;
};

/*
 * Send the pages of runs, or receive them in place, and store their digests. 0, -ENODATA where the line ends, or
 * -errno; after -EINTR the same call continues.
 */
long vmm_send_runs(struct vmm_transfer *transfer);
long vmm_receive_runs(struct vmm_transfer *transfer);

/* Store the digests of runs whose pages go, or came, in another way. */
void vmm_digest_runs(const struct vmm_transfer *transfer);

/* Make zeros of the pages of received runs that have no data, and of their digests. */
void vmm_clear_runs(const struct vmm_transfer *transfer);

/* The first page from `first` on that is not dirty and whose digest is another than the stored one, or `end`. */
uint64_t vmm_compare_pages(const struct vmm_scan *scan, uint64_t first);

/* Have the kernel give all pages of a mapping now, writable: MADV_POPULATE_WRITE (Linux 5.14). Returns -errno. */
long vmm_populate(void *address, size_t size);

/* One vCPU's mapped dirty ring of `size` entries, a power of two. */
struct vmm_dirty_ring {
    struct kvm_dirty_gfn *entries;
    uint32_t size;
    uint32_t next;
};

/*
 * Move what a ring holds into bitmaps, one a memory slot with `bits` bits. KVM_RESET_DIRTY_RINGS gives the
 * entries back. Returns how many there were; -ERANGE at an entry that is in no slot.
 */
long vmm_harvest_ring(struct vmm_dirty_ring *ring, uint64_t *const *bitmaps, const uint64_t *bits, uint32_t slots);

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
 * While `line[0]` is not 0, let one thread after another load these tiles and release them: the first use of tiles in a
 * thread's life is #NM in the host. `line[1]` counts the threads. Returns 0 once `line[2]` is not 0, or -errno.
 */
long vmm_host_tiles_first_uses(const uint8_t *config, const uint8_t *tiles, uint64_t *line);
/*
 * Take a signal on a stack of this thread's own and measure the frames: how many there were, the bytes from a frame's
 * context to the top of the stack, the bytes of its state and the xfeatures there, the largest or all of what was seen.
 * With NULL the signal is ignored and the stack given up.
 */
struct vmm_signal_frames {
    uint64_t count;
    uint64_t size;
    uint64_t extended;
    uint64_t features;
};
long vmm_measure_frames(int number, struct vmm_signal_frames *where);
/*
 * Stop another process, read its XSAVE area by PTRACE_GETREGSET (NT_X86_XSTATE) and let it continue. Returns the
 * number of bytes, or -errno.
 */
long vmm_ptrace_xstate(int pid, uint8_t *buffer, size_t size);
/*
 * A shadow stack of this thread's own around KVM_RUN: SSP `before` and `after` it. If that is the same, `value`
 * is written below it, by WRSS, and `read` again.
 */
struct vmm_own_shadow {
    uint64_t value;
    uint64_t before;
    uint64_t after;
    uint64_t read;
};
/* Turn one on and off again. Returns -errno, -EOPNOTSUPP where the CPU or the kernel has none for this process. */
long vmm_own_shadow_stack(void);
/* Install an alternate signal stack of `size` bytes; 0 removes it. Returns -errno. */
long vmm_sigaltstack(size_t size);
/*
 * What KVM_RUN is to do with this thread's own registers: they become `given`, KVM_RUN is called `calls` times or up
 * to the first error, and they go to `observed`; then they are again what they were. Both are XSAVE areas in the
 * standard format, of VMM_HOST_AREA bytes. `features` are the components; 0 is x87 and SSE on a host without XSAVE.
 */
#define VMM_HOST_AREA 4096
struct vmm_host_vectors {
    const uint8_t *given;
    uint8_t *observed;
    uint64_t features;
    uint64_t calls;
};
/* The same around sched_yield, for who competes with a guest. Returns -errno. */
long vmm_yield_with_vectors(const struct vmm_host_vectors *vectors);
#endif

/*
 * Calls of one descriptor, made in order up to the first that fails or whose `result` is not the one `wanted`;
 * `result` is ioctl's or -errno. A negative `wanted` is content with any success.
 */
struct vmm_call {
    unsigned long request;
    void *argument;
    long wanted;
    long result;
};
/* Returns how many went as wanted before one did not. */
size_t vmm_ioctls(int fd, struct vmm_call *calls, size_t count);

#ifdef __aarch64__
long vmm_prctl(int option, unsigned long argument);
/*
 * What KVM_RUN is to do with this thread's own Z, P, FFR, FPSR and FPCR. They become `image`, right before it or
 * right after it, and go to `observed`: right after it, or, if the image came after it, after a signal or after
 * `wait_ns`, without a system call in between. Layout of both: guest_payloads/arm64/area.h. -EOPNOTSUPP without SVE.
 */
#define VMM_BEFORE_RUN 0
#define VMM_AFTER_RUN_SIGNAL 1
#define VMM_AFTER_RUN_WAIT 2
/* The process stops by BRK, its tracer writes the registers (vmm_trace), and they go to `observed` without a signal. */
#define VMM_TRACED_BEFORE_RUN 3
#define VMM_TRACED_AFTER_RUN 4
/* Image and `observed` are ZA, row by row, and what vmm_host_zt0 says of ZT0; -EOPNOTSUPP without SME. */
#define VMM_ZA_BEFORE_RUN 5
struct vmm_host_vectors {
    const uint8_t *image;
    uint8_t *observed;
    uint64_t wait_ns;
    int when;
};
/* This thread's vector length in bytes as the CPU sees it; -EOPNOTSUPP without SVE. */
long vmm_host_rdvl(void);
/* The streaming vector length in bytes, which is the number of ZA's rows too; -EOPNOTSUPP without SME. */
long vmm_host_rdsvl(void);
/* Bytes of ZT0, 0 without SME2. */
long vmm_host_zt0(void);
/* Trace a child that asked for it to its end, and give it these registers (NT_ARM_SVE) at each BRK: its wait status. */
long vmm_trace(int process, const uint8_t *registers, size_t size);
/* CNTFRQ_EL0 in Hz, which a guest reads too. */
uint64_t vmm_host_cntfrq(void);

/* FPMR of the calling thread; SIGILL where HWCAP2_FPMR is missing. */
uint64_t vmm_get_fpmr(void);
void vmm_set_fpmr(uint64_t value);
#endif

#endif
