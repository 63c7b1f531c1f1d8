/* SPDX-License-Identifier: Apache-2.0 */
/* Included by shim.c on x86: a shadow stack of this thread's own around KVM_RUN. */
#include <asm/unistd.h>

/* asm/prctl.h has them since Linux 6.6. */
#define SHSTK_ENABLE 0x5001
#define SHSTK_DISABLE 0x5002
#define SHSTK_SHSTK 1
#define SHSTK_WRSS 2

/* A shadow stack that is new has no return address: nothing may return while it is in use, so all of this is inline. */
#define ALWAYS static inline __attribute__((always_inline))

ALWAYS long call_kernel(long number, long first, long second, long third)
{
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(number), "D"(first), "S"(second), "d"(third)
                     : "rcx", "r11", "cc", "memory");
    return result;
}

/* SSP; 0 without a shadow stack, since the instruction does nothing then. */
ALWAYS uint64_t shadow_pointer(void)
{
    uint64_t pointer = 0;
    __asm__ volatile("rdsspq %0" : "+r"(pointer));
    return pointer;
}

/* Two features are enabled one by one; either by itself is undone with the first. */
ALWAYS long shadow_stack_on(void)
{
    long error = call_kernel(__NR_arch_prctl, SHSTK_ENABLE, SHSTK_SHSTK, 0);
    return error ? error : call_kernel(__NR_arch_prctl, SHSTK_ENABLE, SHSTK_WRSS, 0);
}

ALWAYS void shadow_stack_off(void)
{
    call_kernel(__NR_arch_prctl, SHSTK_DISABLE, SHSTK_WRSS, 0);
    call_kernel(__NR_arch_prctl, SHSTK_DISABLE, SHSTK_SHSTK, 0);
}

/* KVM_RUN with a shadow stack that this thread may also write. WRSS is #UD where U_CET has lost its bit. */
static __attribute__((noinline)) long enter_with_shadow_stack(int fd, struct vmm_own_shadow *shadow)
{
    long result = shadow_stack_on();

    if (result) {
        shadow_stack_off();
        return result;
    }
    shadow->before = shadow_pointer();
    result = call_kernel(__NR_ioctl, fd, KVM_RUN, 0);
    shadow->after = shadow_pointer();
    if (shadow->after == shadow->before)
        __asm__ volatile("wrssq %2, -8(%1)\n"
                         "movq -8(%1), %0"
                         : "=r"(shadow->read)
                         : "r"(shadow->after), "r"(shadow->value)
                         : "memory");
    shadow_stack_off();
    return result;
}

long vmm_own_shadow_stack(void)
{
    long error = shadow_stack_on();
    shadow_stack_off();
    return error;
}
