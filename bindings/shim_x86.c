/* SPDX-License-Identifier: Apache-2.0 */
/* Included by shim.c on x86: the VMM's own x87, vector and mask registers and PKRU, which Python cannot hold still. */

/*
 * Make `calls` system calls, the same each time, up to the first that fails. The registers are `given` before the
 * first and go to `observed` after the last; nothing else is between, so that what a call spoils, stays. The three
 * areas are 64-byte aligned, in the standard format. SAVE and RESTORE are given EDX:EAX and the area's register.
 */
#define WITH_REGISTERS(SAVE, RESTORE)                       \
    __asm__ volatile("mov %%r13, %%rax\n"                   \
                     "mov %%r13, %%rdx\n"                   \
                     "shr $32, %%rdx\n" SAVE " (%%r8)\n"    \
                     RESTORE " (%%r9)\n"                    \
                     "1: mov %%r14, %%rax\n"                \
                     "xor %%edx, %%edx\n"                   \
                     "syscall\n"                            \
                     "test %%rax, %%rax\n"                  \
                     "js 2f\n"                              \
                     "dec %%r12\n"                          \
                     "jnz 1b\n"                             \
                     "2: mov %%rax, %%r14\n"                \
                     "mov %%r13, %%rax\n"                   \
                     "mov %%r13, %%rdx\n"                   \
                     "shr $32, %%rdx\n" SAVE " (%%r10)\n"   \
                     RESTORE " (%%r8)\n"                    \
                     : "+r"(r12), "+r"(r14)                 \
                     : "r"(rdi), "r"(rsi), "r"(r8), "r"(r9), "r"(r10), "r"(r13) \
                     : "rax", "rcx", "rdx", "r11", "cc", "memory")

struct own_areas {
    uint8_t own[VMM_HOST_AREA] __attribute__((aligned(64)));
    uint8_t given[VMM_HOST_AREA] __attribute__((aligned(64)));
    uint8_t observed[VMM_HOST_AREA] __attribute__((aligned(64)));
};

/* No function may be called while the variables have their registers, hence by itself. */
static __attribute__((noinline)) long call_with_registers(long number, long first, long second,
                                                          const struct vmm_host_vectors *vectors,
                                                          struct own_areas *areas)
{
    register long rdi __asm__("rdi") = first;
    register long rsi __asm__("rsi") = second;
    register uint8_t *r8 __asm__("r8") = areas->own;
    register uint8_t *r9 __asm__("r9") = areas->given;
    register uint8_t *r10 __asm__("r10") = areas->observed;
    register uint64_t r12 __asm__("r12") = vectors->calls;
    register uint64_t r13 __asm__("r13") = vectors->features;
    register long r14 __asm__("r14") = number;

    if (vectors->features)
        WITH_REGISTERS("xsave64", "xrstor64");
    else
        WITH_REGISTERS("fxsave64", "fxrstor64");
    return r14;
}

static long with_registers(long number, long first, long second, const struct vmm_host_vectors *vectors)
{
    static const size_t legacy = 512, header = 64;
    struct own_areas areas;
    long result;

    memset(areas.own + legacy, 0, header);
    memset(areas.observed, 0, sizeof(areas.observed));
    memcpy(areas.given, vectors->given, sizeof(areas.given));
    result = call_with_registers(number, first, second, vectors, &areas);
    if (!vectors->features)
        areas.observed[legacy] = 3; /* XSTATE_BV: all of it was stored */
    memcpy(vectors->observed, areas.observed, sizeof(areas.observed));
    return result;
}

static long enter_with_vectors(int fd, const struct vmm_host_vectors *vectors)
{
    return with_registers(SYS_ioctl, fd, KVM_RUN, vectors);
}

long vmm_yield_with_vectors(const struct vmm_host_vectors *vectors)
{
    return with_registers(SYS_sched_yield, 0, 0, vectors);
}
