/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "newer.h"
#include "shim.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

long vmm_ioctl(int fd, unsigned long request, void *argument)
{
    long result = syscall(SYS_ioctl, fd, request, argument);
    return result < 0 ? -errno : result;
}

size_t vmm_ioctls(int fd, struct vmm_call *calls, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        calls[i].result = vmm_ioctl(fd, calls[i].request, calls[i].argument);
        if (calls[i].result < 0 || (calls[i].wanted >= 0 && calls[i].result != calls[i].wanted))
            return i;
    }
    return count;
}

long vmm_ioctl_value(int fd, unsigned long request, unsigned long argument)
{
    long result = syscall(SYS_ioctl, fd, request, argument);
    return result < 0 ? -errno : result;
}

/*
 * The deadline. A per-thread timer sends a signal whose handler sets immediate_exit in the kvm_run
 * that this thread is in, so there is no window: a signal before KVM_RUN makes it return at once,
 * one during it interrupts it. Arming a timer costs a system call, so it stays armed over many
 * short runs: it may fire up to half a timeout late, never early.
 */
static __thread struct vmm_run_control *volatile current;
static __thread timer_t timer;
static __thread pid_t timer_owner; /* the thread and process that made the timer: fork does not copy it */
static __thread uint64_t expires;

int vmm_kick_signal(void)
{
    return SIGRTMIN + 4;
}

/* gettid costs as much as all the rest of a run, KVM_RUN excepted: asked once, and again in a fork's child. */
static __thread pid_t known_id;

static void forget_id(void)
{
    known_id = 0;
}

__attribute__((constructor)) static void forget_id_in_children(void)
{
    pthread_atfork(NULL, NULL, forget_id);
}

static pid_t thread_id(void)
{
    if (!known_id)
        known_id = (pid_t)syscall(SYS_gettid);
    return known_id;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void on_kick(int number)
{
    struct vmm_run_control *control = current;
    (void)number;
    if (control)
        *(volatile uint8_t *)&control->run->immediate_exit = 1;
}

static long make_timer(pid_t self)
{
    struct sigaction action;
    struct sigevent event;

    memset(&action, 0, sizeof(action));
    action.sa_handler = on_kick; /* no SA_RESTART: KVM_RUN has to come back */
    sigfillset(&action.sa_mask);
    if (sigaction(vmm_kick_signal(), &action, NULL))
        return -errno;
    memset(&event, 0, sizeof(event));
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = vmm_kick_signal();
#ifdef sigev_notify_thread_id
    event.sigev_notify_thread_id = self;
#else
    event._sigev_un._tid = self;
#endif
    if (timer_create(CLOCK_MONOTONIC, &event, &timer))
        return -errno;
    timer_owner = self;
    expires = 0;
    return 0;
}

static long arm(pid_t self, uint64_t now, uint64_t timeout)
{
    struct itimerspec when;
    long error;

    if (timer_owner != self && (error = make_timer(self)) < 0)
        return error;
    if (expires >= now + timeout && expires - now <= timeout + timeout / 2)
        return 0;
    expires = now + timeout + timeout / 2;
    memset(&when, 0, sizeof(when));
    when.it_value.tv_sec = (time_t)(expires / 1000000000u);
    when.it_value.tv_nsec = (long)(expires % 1000000000u);
    if (timer_settime(timer, TIMER_ABSTIME, &when, NULL)) {
        expires = 0;
        return -errno;
    }
    return 0;
}

/* Is this exit the guest's tick? */
static int ticked(const struct vmm_run_control *control)
{
    const struct kvm_run *run = control->run;
    if (!control->tick)
        return 0;
    if (run->exit_reason == KVM_EXIT_IO)
        return run->io.direction == KVM_EXIT_IO_OUT && run->io.port == control->tick;
    return run->exit_reason == KVM_EXIT_MMIO && run->mmio.is_write && run->mmio.phys_addr == control->tick;
}

/* KVM_RUN was interrupted: by our deadline, by a kick, or by somebody else's signal? */
static long interrupted(struct vmm_run_control *control, uint64_t deadline)
{
    volatile uint8_t *immediate_exit = &control->run->immediate_exit;

    if (__atomic_exchange_n(&control->stop, 0, __ATOMIC_ACQ_REL)) {
        *immediate_exit = 0;
        return VMM_RUN_STOPPED;
    }
    if (!*immediate_exit)
        return VMM_RUN_SIGNAL;
    *immediate_exit = 0;
    return now_ns() >= deadline ? VMM_RUN_DEADLINE : VMM_RUN_SIGNAL;
}

#ifdef __aarch64__
#include "shim_arm64.c"
#endif
#ifdef __x86_64__
#include "shim_x86.c"
#include "shim_shadow.c"
#endif

static long enter(const struct vmm_run_control *control)
{
#ifdef __x86_64__
    if (control->shadow)
        return enter_with_shadow_stack(control->fd, control->shadow);
#endif
    if (control->vectors)
        return enter_with_vectors(control->fd, control->vectors);
    return syscall(SYS_ioctl, control->fd, KVM_RUN, 0) ? -errno : 0;
}

static long run_loop(struct vmm_run_control *control, uint64_t deadline)
{
    for (;;) {
        long result;

        control->entries++;
        result = enter(control);
        if (result == -EINTR)
            return interrupted(control, deadline);
        if (result < 0)
            return result;
        if (!ticked(control))
            return VMM_RUN_EXIT;
        if (++control->absorbed >= control->budget)
            return VMM_RUN_BUDGET;
    }
}

long vmm_run(struct vmm_run_control *control)
{
    pid_t self = thread_id();
    uint64_t deadline = UINT64_MAX;
    long result;

    if (control->timeout_ns) {
        uint64_t now = now_ns();
        long error = arm(self, now, control->timeout_ns);
        control->no_timer = error < 0;
        if (error < 0)
            return error;
        deadline = now + control->timeout_ns;
    }
    __atomic_store_n(&control->thread, self, __ATOMIC_RELEASE);
    current = control;
    if (__atomic_load_n(&control->stop, __ATOMIC_ACQUIRE))
        *(volatile uint8_t *)&control->run->immediate_exit = 1;
    result = run_loop(control, deadline);
    current = NULL;
    __atomic_store_n(&control->thread, 0, __ATOMIC_RELEASE);
    return result;
}

long vmm_kick(struct vmm_run_control *control)
{
    int thread;

    __atomic_store_n(&control->stop, 1, __ATOMIC_RELEASE);
    thread = __atomic_load_n(&control->thread, __ATOMIC_ACQUIRE);
    if (thread && syscall(SYS_tgkill, getpid(), thread, vmm_kick_signal()))
        return -errno;
    return 0;
}

long vmm_die_with_parent(int parent)
{
    if (prctl(PR_SET_PDEATHSIG, parent ? SIGKILL : 0))
        return -errno;
    return !parent || getppid() == parent ? 0 : -ESRCH;
}

long vmm_fork(void)
{
    pid_t pid = fork();
    return pid < 0 ? -errno : pid;
}

long vmm_trace_me(void)
{
    return ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0 ? -errno : 0;
}

size_t vmm_written_length(const uint8_t *buffer, size_t size, uint8_t poison)
{
    while (size && buffer[size - 1] == poison)
        size--;
    return size;
}

#include "shim_pages.c"

#ifdef __x86_64__
#include <cpuid.h>
#include <elf.h>
#include <sys/ptrace.h>
#include <sys/ucontext.h>
#include <sys/uio.h>
#include <sys/wait.h>

long vmm_arch_prctl(int code, void *argument)
{
    long result = syscall(SYS_arch_prctl, code, argument);
    return result < 0 ? -errno : result;
}

long vmm_arch_prctl_value(int code, unsigned long argument)
{
    long result = syscall(SYS_arch_prctl, code, argument);
    return result < 0 ? -errno : result;
}

void vmm_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t registers[4])
{
    __cpuid_count(leaf, subleaf, registers[0], registers[1], registers[2], registers[3]);
}

int vmm_has_osxsave(void)
{
    uint32_t registers[4];
    vmm_cpuid(1, 0, registers);
    return registers[2] >> 27 & 1;
}

uint64_t vmm_xgetbv(uint32_t index)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(index));
    return (uint64_t)high << 32 | low;
}

uint32_t vmm_rdpkru(void)
{
    uint32_t value, high;
    __asm__ volatile("rdpkru" : "=a"(value), "=d"(high) : "c"(0));
    return value;
}

void vmm_wrpkru(uint32_t value)
{
    __asm__ volatile("wrpkru" : : "a"(value), "c"(0), "d"(0) : "memory");
}

#define EACH_TILE(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7)
#define LOAD_TILE(n) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #n : : "r"(tiles + 1024 * n), "r"((long)64) : "memory");
#define STORE_TILE(n) \
    __asm__ volatile("tilestored %%tmm" #n ", (%0,%1,1)" : : "r"(tiles + 1024 * n), "r"((long)64) : "memory");

void vmm_host_tiles_load(const uint8_t *config, const uint8_t *tiles)
{
    __asm__ volatile("ldtilecfg (%0)" : : "r"(config) : "memory");
    EACH_TILE(LOAD_TILE)
}

void vmm_host_tiles_store(uint8_t *tiles)
{
    EACH_TILE(STORE_TILE)
}

void vmm_host_tiles_release(void)
{
    __asm__ volatile("tilerelease");
}

long vmm_ptrace_xstate(int pid, uint8_t *buffer, size_t size)
{
    struct iovec area = {.iov_base = buffer, .iov_len = size};
    long result;

    if (ptrace(PTRACE_SEIZE, pid, 0, 0))
        return -errno;
    if (ptrace(PTRACE_INTERRUPT, pid, 0, 0) || waitpid(pid, NULL, __WALL) != pid)
        result = -errno;
    else
        result = ptrace(PTRACE_GETREGSET, pid, NT_X86_XSTATE, &area) ? -errno : (long)area.iov_len;
    ptrace(PTRACE_DETACH, pid, 0, 0);
    return result;
}

long vmm_sigaltstack(size_t size)
{
    static void *memory;
    stack_t stack;

    memset(&stack, 0, sizeof(stack));
    if (!size) {
        stack.ss_flags = SS_DISABLE;
        return sigaltstack(&stack, NULL) ? -errno : 0;
    }
    void *fresh = malloc(size);
    if (!fresh)
        return -ENOMEM;
    stack.ss_sp = fresh;
    stack.ss_size = size;
    if (sigaltstack(&stack, NULL)) {
        long error = -errno;
        free(fresh);
        return error;
    }
    free(memory);
    memory = fresh;
    return 0;
}

#include "shim_tiles.c"
#endif

#include "shim_flush.c"
