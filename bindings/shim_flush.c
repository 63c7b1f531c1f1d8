/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Included by shim.c: cache lines written back and invalidated, so that what memory itself holds is what is read.
 * Sources: Intel SDM volume 2, CLFLUSH and CLFLUSHOPT; Arm ARM, DC CIVAC and CTR_EL0.
 */

/* What this CPU flushes with, looked up once. A race of two threads writes the same values twice. */
static struct {
    size_t line; /* bytes a line; 0: there is no such instruction */
    const char *name;
    int known;
} flusher;

#ifdef __x86_64__
static int has_clflushopt;

static void find_flusher(void)
{
    uint32_t registers[4];

    vmm_cpuid(0, 0, registers);
    uint32_t leaves = registers[0];
    vmm_cpuid(1, 0, registers);
    if (registers[3] >> 19 & 1) {
        flusher.line = (registers[1] >> 8 & 0xff) * 8;
        flusher.name = "CLFLUSH";
    }
    if (flusher.line && leaves >= 7) {
        vmm_cpuid(7, 0, registers);
        has_clflushopt = registers[1] >> 23 & 1;
        if (has_clflushopt)
            flusher.name = "CLFLUSHOPT";
    }
}

static void flush_lines(const uint8_t *line, const uint8_t *end)
{
    if (has_clflushopt)
        for (; line < end; line += flusher.line)
            __asm__ volatile("clflushopt %0" : : "m"(*line));
    else
        for (; line < end; line += flusher.line)
            __asm__ volatile("clflush %0" : : "m"(*line));
}

/* MFENCE orders CLFLUSHOPT with loads and stores on both sides; CLFLUSH needs it on old CPUs. */
static void flush_fence(void)
{
    __asm__ volatile("mfence" : : : "memory");
}
#endif

#ifdef __aarch64__
/* Linux allows EL0 both CTR_EL0 and DC CIVAC (SCTLR_EL1.UCT and UCI), or emulates them. */
static void find_flusher(void)
{
    uint64_t type;

    __asm__("mrs %0, ctr_el0" : "=r"(type));
    flusher.line = (size_t)4 << (type >> 16 & 0xf);
    flusher.name = "DC CIVAC";
}

static void flush_lines(const uint8_t *line, const uint8_t *end)
{
    for (; line < end; line += flusher.line)
        __asm__ volatile("dc civac, %0" : : "r"(line) : "memory");
}

static void flush_fence(void)
{
    __asm__ volatile("dsb sy" : : : "memory");
}
#endif

static void know_flusher(void)
{
    if (!__atomic_load_n(&flusher.known, __ATOMIC_ACQUIRE)) {
        find_flusher();
        __atomic_store_n(&flusher.known, 1, __ATOMIC_RELEASE);
    }
}

size_t vmm_flush_line(void)
{
    know_flusher();
    return flusher.line;
}

const char *vmm_flush_name(void)
{
    know_flusher();
    return flusher.name;
}

long vmm_flush(uint64_t base, const uint64_t *ranges, size_t count)
{
    know_flusher();
    if (!flusher.line)
        return -EOPNOTSUPP;
    flush_fence();
    for (size_t n = 0; n < count; n++) {
        uintptr_t start = (uintptr_t)(base + ranges[2 * n]);
        uintptr_t end = start + ranges[2 * n + 1];
        flush_lines((const uint8_t *)(start & ~(uintptr_t)(flusher.line - 1)), (const uint8_t *)end);
    }
    flush_fence();
    return 0;
}
