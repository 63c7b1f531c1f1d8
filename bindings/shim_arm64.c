/* SPDX-License-Identifier: Apache-2.0 */
/* Included by shim.c on arm64: the VMM's own vector registers, which Python cannot hold still. */
#include <asm/hwcap.h>
#include <sys/auxv.h>
#include <ucontext.h>

long vmm_prctl(int option, unsigned long argument)
{
    long result = prctl(option, argument, 0, 0, 0);
    return result < 0 ? -errno : result;
}

static int has_sve(void)
{
    return (getauxval(AT_HWCAP) & HWCAP_SVE) != 0;
}

/*
 * The image at X9 goes to the registers, the registers to the image at X10; X11 is scratch. The layout is that of
 * guest_payloads/arm64/area.h: 32 Z of 256 bytes, 16 P and FFR of 32 bytes, FPSR and FPCR of 8 bytes. FFR goes by P0.
 */
#define EACH_Z ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
#define EACH_P ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
#define LOAD_IMAGE                     \
    EACH_Z "ldr z\\n, [x9]\n"          \
           "add x9, x9, #256\n"        \
           ".endr\n"                   \
           "add x11, x9, #16 * 32\n"   \
           "ldr p0, [x11]\n"           \
           "wrffr p0.b\n"              \
    EACH_P "ldr p\\n, [x9]\n"          \
           "add x9, x9, #32\n"         \
           ".endr\n"                   \
           "ldr x11, [x9, #32]\n"      \
           "msr fpsr, x11\n"           \
           "ldr x11, [x9, #40]\n"      \
           "msr fpcr, x11\n"
#define STORE_IMAGE                    \
    EACH_Z "str z\\n, [x10]\n"         \
           "add x10, x10, #256\n"      \
           ".endr\n"                   \
    EACH_P "str p\\n, [x10]\n"         \
           "add x10, x10, #32\n"       \
           ".endr\n"                   \
           "rdffr p0.b\n"              \
           "str p0, [x10]\n"           \
           "mrs x11, fpsr\n"           \
           "str x11, [x10, #32]\n"     \
           "mrs x11, fpcr\n"           \
           "str x11, [x10, #40]\n"
/* The compiler counts on FPCR, and it knows no SVE: P and FFR are nothing that it uses. */
#define BEGIN ".arch_extension sve\n" "mrs x12, fpsr\n" "mrs x13, fpcr\n"
#define END "msr fpsr, x12\n" "msr fpcr, x13\n" ".arch_extension nosve\n"
#define CLOBBERS                                                                                                  \
    "x11", "x12", "x13", "x14", "cc", "memory", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", \
        "v11", "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25",   \
        "v26", "v27", "v28", "v29", "v30", "v31"

/* The image is in the registers when KVM_RUN begins, and what they hold when it has returned is stored. */
static long run_with_image(int fd, const uint8_t *image, uint8_t *observed)
{
    register long x0 __asm__("x0") = fd;
    register long x1 __asm__("x1") = KVM_RUN;
    register long x2 __asm__("x2") = 0;
    register long x8 __asm__("x8") = SYS_ioctl;
    register const uint8_t *x9 __asm__("x9") = image;
    register uint8_t *x10 __asm__("x10") = observed;

    __asm__ volatile(BEGIN LOAD_IMAGE "svc #0\n" STORE_IMAGE END
                     : "+r"(x0), "+r"(x9), "+r"(x10)
                     : "r"(x1), "r"(x2), "r"(x8)
                     : CLOBBERS);
    return x0;
}

/*
 * KVM_RUN, then the image goes to the registers and is stored again after a signal (`until` 0), or when the counter
 * has reached `until` ticks from then. No system call lies between, since it would be allowed to discard Z, P, FFR.
 */
static long run_then_image(int fd, const uint8_t *image, uint8_t *observed, uint64_t until)
{
    register long x0 __asm__("x0") = fd;
    register long x1 __asm__("x1") = KVM_RUN;
    register long x2 __asm__("x2") = 0;
    register long x8 __asm__("x8") = SYS_ioctl;
    register const uint8_t *x9 __asm__("x9") = image;
    register uint8_t *x10 __asm__("x10") = observed;
    register uint64_t x15 __asm__("x15") = until;

    __asm__ volatile(BEGIN "svc #0\n" LOAD_IMAGE
                     "cbnz x15, 1f\n"
                     ".inst 0\n"
                     "b 3f\n"
                     "1: mrs x14, cntvct_el0\n"
                     "2: mrs x11, cntvct_el0\n"
                     "sub x11, x11, x14\n"
                     "cmp x11, x15\n"
                     "b.lo 2b\n"
                     "3:\n" STORE_IMAGE END
                     : "+r"(x0), "+r"(x9), "+r"(x10)
                     : "r"(x1), "r"(x2), "r"(x8), "r"(x15)
                     : CLOBBERS);
    return x0;
}

/* The instruction 0 above was the signal's only purpose; another one is an error as ever. */
static void skip_instruction(int number, siginfo_t *information, void *context)
{
    mcontext_t *registers = &((ucontext_t *)context)->uc_mcontext;
    (void)information;
    if (*(const uint32_t *)registers->pc)
        signal(number, SIG_DFL);
    else
        registers->pc += 4;
}

uint64_t vmm_host_cntfrq(void)
{
    uint64_t frequency;
    __asm__("mrs %0, cntfrq_el0" : "=r"(frequency));
    return frequency;
}

static uint64_t counter_ticks(uint64_t nanoseconds)
{
    return (uint64_t)((unsigned __int128)nanoseconds * vmm_host_cntfrq() / 1000000000u);
}

static long run_then_signal(int fd, const struct vmm_host_vectors *vectors)
{
    struct sigaction action, before;
    long result;

    memset(&action, 0, sizeof(action));
    action.sa_sigaction = skip_instruction;
    action.sa_flags = SA_SIGINFO;
    if (sigaction(SIGILL, &action, &before))
        return -errno;
    result = run_then_image(fd, vectors->image, vectors->observed, 0);
    sigaction(SIGILL, &before, NULL);
    return result;
}

#include "shim_arm64_own.c"

static long enter_with_vectors(int fd, const struct vmm_host_vectors *vectors)
{
    if (vectors->when == VMM_ZA_BEFORE_RUN)
        return has_sme() ? run_with_za(fd, vectors->image, vectors->observed, vmm_host_zt0()) : -EOPNOTSUPP;
    if (!has_sve())
        return -EOPNOTSUPP;
    if (vectors->when == VMM_TRACED_BEFORE_RUN || vectors->when == VMM_TRACED_AFTER_RUN)
        return run_traced(fd, vectors->image, vectors->observed, vectors->when == VMM_TRACED_BEFORE_RUN);
    if (vectors->when == VMM_BEFORE_RUN)
        return run_with_image(fd, vectors->image, vectors->observed);
    if (vectors->when == VMM_AFTER_RUN_SIGNAL)
        return run_then_signal(fd, vectors);
    return run_then_image(fd, vectors->image, vectors->observed, counter_ticks(vectors->wait_ns) + 1);
}

long vmm_host_rdvl(void)
{
    long result;

    if (!has_sve())
        return -EOPNOTSUPP;
    __asm__ volatile(".arch_extension sve\n"
                     "rdvl %0, #1\n"
                     ".arch_extension nosve\n"
                     : "=r"(result));
    return result;
}

/* FPMR of this thread, where HWCAP2_FPMR says that there is one: no compiler's code uses it by itself. */
uint64_t vmm_get_fpmr(void)
{
    uint64_t value;

    __asm__ volatile("mrs %0, S3_3_C4_C4_2" : "=r"(value));
    return value;
}

void vmm_set_fpmr(uint64_t value)
{
    __asm__ volatile("msr S3_3_C4_C4_2, %0" : : "r"(value));
}
