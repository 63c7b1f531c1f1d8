/* SPDX-License-Identifier: Apache-2.0 */
/* Included by shim_arm64.c: ZA around a KVM_RUN, and registers that a tracer writes around one. */
#include <sys/uio.h>
#include <sys/wait.h>

#ifndef HWCAP2_SME
#define HWCAP2_SME (1UL << 23)
#endif
#ifndef HWCAP2_SME2
#define HWCAP2_SME2 (1UL << 37)
#endif
#define REGSET_GENERAL 1   /* NT_PRSTATUS */
#define REGSET_SVE 0x405   /* NT_ARM_SVE */
#define ZT0_BYTES 64

/* Instructions of SME by number: not every assembler knows them. X9 and X10 are the addresses, W12 the row. */
#define SMSTART_ZA ".inst 0xd503457f\n"
#define SMSTOP_ZA ".inst 0xd503447f\n"
#define RDSVL_X11 ".inst 0x04bf582b\n"
#define LDR_ZA ".inst 0xe1000120\n"
#define STR_ZA ".inst 0xe1200140\n"
#define LDR_ZT0 ".inst 0xe11f8120\n"
#define STR_ZT0 ".inst 0xe13f8140\n"
#define SVCR "S3_3_C4_C2_2"

static int has_sme(void)
{
    return (getauxval(AT_HWCAP2) & HWCAP2_SME) != 0;
}

/* ZA, and ZT0 if `zt0`, become the image; if PSTATE.ZA is still 1 after KVM_RUN they are stored. */
static long run_with_za(int fd, const uint8_t *image, uint8_t *observed, long zt0)
{
    register long x0 __asm__("x0") = fd;
    register long x1 __asm__("x1") = KVM_RUN;
    register long x2 __asm__("x2") = 0;
    register long x8 __asm__("x8") = SYS_ioctl;
    register const uint8_t *x9 __asm__("x9") = image;
    register uint8_t *x10 __asm__("x10") = observed;
    register long x15 __asm__("x15") = zt0;

    __asm__ volatile(".arch_extension sve\n" SMSTART_ZA RDSVL_X11
                     "mov x12, #0\n"
                     "1:" LDR_ZA
                     "add x9, x9, x11\n"
                     "add x12, x12, #1\n"
                     "cmp x12, x11\n"
                     "b.lo 1b\n"
                     "cbz x15, 2f\n" LDR_ZT0
                     "2: svc #0\n"
                     "mrs x13, " SVCR "\n"
                     "tbz x13, #1, 4f\n"
                     "mov x12, #0\n"
                     "3:" STR_ZA
                     "add x10, x10, x11\n"
                     "add x12, x12, #1\n"
                     "cmp x12, x11\n"
                     "b.lo 3b\n"
                     "cbz x15, 4f\n" STR_ZT0
                     "4:" SMSTOP_ZA ".arch_extension nosve\n"
                     : "+r"(x0), "+r"(x9), "+r"(x10)
                     : "r"(x1), "r"(x2), "r"(x8), "r"(x15)
                     : CLOBBERS);
    return x0;
}

long vmm_host_rdsvl(void)
{
    register long x11 __asm__("x11");

    if (!has_sme())
        return -EOPNOTSUPP;
    __asm__ volatile(RDSVL_X11 : "=r"(x11));
    return x11;
}

long vmm_host_zt0(void)
{
    return getauxval(AT_HWCAP2) & HWCAP2_SME2 ? ZT0_BYTES : 0;
}

/* The image is in the registers when the process stops for its tracer, right before KVM_RUN (`before`) or after it. */
static long run_traced(int fd, const uint8_t *image, uint8_t *observed, long before)
{
    register long x0 __asm__("x0") = fd;
    register long x1 __asm__("x1") = KVM_RUN;
    register long x2 __asm__("x2") = 0;
    register long x8 __asm__("x8") = SYS_ioctl;
    register const uint8_t *x9 __asm__("x9") = image;
    register uint8_t *x10 __asm__("x10") = observed;
    register long x15 __asm__("x15") = before;

    __asm__ volatile(BEGIN
                     "cbz x15, 1f\n" LOAD_IMAGE
                     "brk #0\n"
                     "svc #0\n"
                     "b 2f\n"
                     "1: svc #0\n" LOAD_IMAGE
                     "brk #0\n"
                     "2:\n" STORE_IMAGE END
                     : "+r"(x0), "+r"(x9), "+r"(x10)
                     : "r"(x1), "r"(x2), "r"(x8), "r"(x15)
                     : CLOBBERS);
    return x0;
}

/* At a BRK the process gets the registers of SVE, and goes on behind it. */
static long at_stop(pid_t process, const uint8_t *registers, size_t size)
{
    struct user_pt_regs general;
    struct iovec where = {&general, sizeof(general)};
    struct iovec vectors = {(void *)registers, size};

    if (ptrace(PTRACE_SETREGSET, process, REGSET_SVE, &vectors) < 0 ||
        ptrace(PTRACE_GETREGSET, process, REGSET_GENERAL, &where) < 0)
        return -errno;
    general.pc += 4;
    return ptrace(PTRACE_SETREGSET, process, REGSET_GENERAL, &where) < 0 ? -errno : 0;
}

long vmm_trace(int process, const uint8_t *registers, size_t size)
{
    for (;;) {
        long result = 0, number;
        int status;

        if (waitpid(process, &status, 0) < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        if (!WIFSTOPPED(status))
            return status;
        number = WSTOPSIG(status);
        if (number == SIGTRAP) {
            result = at_stop(process, registers, size);
            number = 0;
        }
        if (result < 0 || ptrace(PTRACE_CONT, process, NULL, (void *)number) < 0) {
            if (!result)
                result = -errno;
            kill(process, SIGKILL);
            waitpid(process, &status, 0);
            return result;
        }
    }
}
