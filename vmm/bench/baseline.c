/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The baseline of `vmm bench`: the same guest, driven by /dev/kvm as a C programmer would do it, with
 * plain ioctl(2) and nothing in between. vmm.bench compiles this file, and starts it as
 *
 *	baseline FOLDER MEMORY_SIZE TICK
 *
 * FOLDER holds the guest that the Python side built, so that both run the same one: `memory` (records
 * of a 64-bit guest physical address, a 64-bit length and so many bytes), and the vCPU's registers,
 * as the kernel's structures. TICK is where the guest writes for the sake of an exit.
 *
 * A line `NAME N` on stdin asks for N operations (see `operations` below). The answer on stdout is the
 * nanoseconds they took, all N together, or `error: ` and a sentence.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>
#include <linux/kvm.h>

struct guest {
	int kvm, vm, vcpu;
	uint8_t *memory;
	struct kvm_run *run;
	size_t run_size;
};

static const char *folder;
static size_t memory_size;
static uint64_t tick;
static uint8_t *image;
static size_t image_size;

static void fail(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	printf("error: ");
	vprintf(format, arguments);
	printf("\n");
	va_end(arguments);
	exit(1);
}

/* ioctl(2) that does not fail. */
static int call(int fd, unsigned long request, void *argument, const char *name)
{
	int result = ioctl(fd, request, argument);

	if (result < 0)
		fail("%s: %s", name, strerror(errno));
	return result;
}
#define CALL(fd, request, argument) call(fd, request, (void *)(argument), #request)

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Read FOLDER/name whole into fresh memory. */
static void *load(const char *name, size_t *size)
{
	char path[4096];
	uint8_t *data = NULL;
	FILE *file;
	long length;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	file = fopen(path, "rb");
	if (!file || fseek(file, 0, SEEK_END) || (length = ftell(file)) < 0)
		fail("%s: %s", path, strerror(errno));
	rewind(file);
	data = malloc((size_t)length + 1);
	if (!data || fread(data, 1, (size_t)length, file) != (size_t)length)
		fail("%s could not be read", path);
	fclose(file);
	*size = (size_t)length;
	return data;
}

static void load_exactly(const char *name, void *target, size_t size)
{
	size_t found;
	void *data = load(name, &found);

	if (found != size)
		fail("%s has %zu bytes, not %zu", name, found, size);
	memcpy(target, data, size);
	free(data);
}

static void write_image(uint8_t *memory)
{
	uint64_t record[2];

	for (size_t at = 0; at < image_size; at += sizeof(record) + record[1]) {
		memcpy(record, image + at, sizeof(record));
		memcpy(memory + record[0], image + at + sizeof(record), record[1]);
	}
}

#ifdef __x86_64__
#include <cpuid.h>

#define CPUID_ENTRIES 256

static struct kvm_sregs wanted_sregs;
static struct kvm_regs wanted_regs;

static void load_registers(void)
{
	load_exactly("sregs", &wanted_sregs, sizeof(wanted_sregs));
	load_exactly("regs", &wanted_regs, sizeof(wanted_regs));
}

static void set_cpuid(const struct guest *guest)
{
	static union {
		struct kvm_cpuid2 table;
		uint8_t room[sizeof(struct kvm_cpuid2) + CPUID_ENTRIES * sizeof(struct kvm_cpuid_entry2)];
	} cpuid;

	cpuid.table.nent = CPUID_ENTRIES;
	CALL(guest->kvm, KVM_GET_SUPPORTED_CPUID, &cpuid.table);
	CALL(guest->vcpu, KVM_SET_CPUID2, &cpuid.table);
}

static void set_registers(const struct guest *guest)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs;

	CALL(guest->vcpu, KVM_GET_SREGS, &sregs);
	sregs = wanted_sregs;
	CALL(guest->vcpu, KVM_SET_SREGS, &sregs);
	CALL(guest->vcpu, KVM_GET_REGS, &regs);
	regs = wanted_regs;
	CALL(guest->vcpu, KVM_SET_REGS, &regs);
}

static int ticked(const struct kvm_run *run)
{
	return run->exit_reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_OUT && run->io.port == tick;
}
#else
#error "vmm bench has no baseline for this architecture"
#endif

/* From nothing to a guest that is about to run. */
static void start(struct guest *guest)
{
	struct kvm_userspace_memory_region region = { 0 };

	guest->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (guest->kvm < 0)
		fail("/dev/kvm: %s", strerror(errno));
	if (CALL(guest->kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		fail("/dev/kvm speaks another API version than %d", KVM_API_VERSION);
	guest->vm = CALL(guest->kvm, KVM_CREATE_VM, 0);
	guest->run_size = (size_t)CALL(guest->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	guest->memory = mmap(NULL, memory_size, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (guest->memory == MAP_FAILED)
		fail("guest memory: %s", strerror(errno));
	region.memory_size = memory_size;
	region.userspace_addr = (uintptr_t)guest->memory;
	CALL(guest->vm, KVM_SET_USER_MEMORY_REGION, &region);

	guest->vcpu = CALL(guest->vm, KVM_CREATE_VCPU, 0);
	guest->run = mmap(NULL, guest->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, guest->vcpu, 0);
	if (guest->run == MAP_FAILED)
		fail("kvm_run: %s", strerror(errno));
	set_cpuid(guest);
	write_image(guest->memory);
	set_registers(guest);
}

static void stop(struct guest *guest)
{
	munmap(guest->run, guest->run_size);
	close(guest->vcpu);
	munmap(guest->memory, memory_size);
	close(guest->vm);
	close(guest->kvm);
}

/* Run the guest to its next exit, which has to be a tick. */
static void run_to_tick(const struct guest *guest)
{
	while (ioctl(guest->vcpu, KVM_RUN, 0) < 0)
		if (errno != EINTR)
			fail("KVM_RUN: %s", strerror(errno));
	if (!ticked(guest->run))
		fail("the guest left with exit reason %u", guest->run->exit_reason);
}

static struct guest running;

static uint64_t measure_exits(unsigned long n)
{
	uint64_t begin = now_ns();

	while (n--)
		run_to_tick(&running);
	return now_ns() - begin;
}

static uint64_t measure_calls(unsigned long n)
{
	uint64_t begin = now_ns();

	while (n--)
		if (ioctl(running.kvm, KVM_GET_API_VERSION, 0) < 0)
			fail("KVM_GET_API_VERSION: %s", strerror(errno));
	return now_ns() - begin;
}

/* Guest memory as the VMM maps it, in pieces of which no cache holds the next. */
#define PIECE ((size_t)1 << 20)
#define REGION ((size_t)64 << 20)

static uint8_t *region(void)
{
	static uint8_t *found;

	if (!found) {
		found = mmap(NULL, REGION, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (found == MAP_FAILED)
			fail("%zu bytes to copy: %s", REGION, strerror(errno));
		madvise(found, REGION, MADV_HUGEPAGE);
		memset(found, 0x5a, REGION);
	}
	return found;
}

static void flush(const uint8_t *from, size_t size)
{
	static int optimised = -1;
	unsigned int a, b, c, d;

	if (optimised < 0)
		optimised = __get_cpuid_count(7, 0, &a, &b, &c, &d) && b >> 23 & 1;
	__asm__ volatile("mfence" : : : "memory");
	for (const uint8_t *line = from; line < from + size; line += 64) {
		if (optimised)
			__asm__ volatile("clflushopt %0" : : "m"(*line));
		else
			__asm__ volatile("clflush %0" : : "m"(*line));
	}
	__asm__ volatile("mfence" : : : "memory");
}

/* `written`: each piece is written before its time begins. */
static uint64_t copy_pieces(unsigned long n, int flushed, int written)
{
	static uint8_t piece[PIECE];
	static size_t at;
	uint8_t *memory = region();
	uint64_t total = 0;

	while (n--) {
		uint64_t begin;

		if (written)
			memset(memory + at, 0xa5, PIECE);
		begin = now_ns();
		if (flushed)
			flush(memory + at, PIECE);
		memcpy(piece, memory + at, PIECE);
		__asm__ volatile("" : : "r"(piece) : "memory"); /* or the copy would be optimized away */
		total += now_ns() - begin;
		at = (at + PIECE) % REGION;
	}
	return total;
}

static uint64_t measure_copies(unsigned long n)
{
	return copy_pieces(n, 0, 0);
}

static uint64_t measure_flushed_copies(unsigned long n)
{
	return copy_pieces(n, 1, 0);
}

static uint64_t measure_written_copies(unsigned long n)
{
	return copy_pieces(n, 0, 1);
}

#include "baseline_state.c"

static uint64_t measure_starts(unsigned long n)
{
	uint64_t total = 0;

	while (n--) {
		struct guest guest;
		uint64_t begin = now_ns();

		start(&guest);
		run_to_tick(&guest);
		total += now_ns() - begin;
		stop(&guest);
	}
	return total;
}

static const struct {
	const char *name;
	uint64_t (*measure)(unsigned long n);
} operations[] = {
	{ "exit", measure_exits },   /* one guest exit */
	{ "call", measure_calls },   /* one ioctl that does next to nothing */
	{ "start", measure_starts }, /* open /dev/kvm to the first guest exit; closing is not counted */
	{ "state", measure_states }, /* a vCPU's whole state saved, and restored to the same vCPU */
	{ "copy", measure_copies },  /* memcpy of a piece of guest memory */
	{ "flushcopy", measure_flushed_copies }, /* the same with its cache lines flushed before */
	{ "dirtycopy", measure_written_copies }, /* memcpy of what was written right before */
};

static uint64_t measure(const char *name, unsigned long n)
{
	for (size_t i = 0; i < sizeof(operations) / sizeof(operations[0]); i++)
		if (!strcmp(operations[i].name, name))
			return operations[i].measure(n);
	fail("no operation is called %s", name);
	return 0;
}

int main(int count, char **arguments)
{
	char name[16];
	unsigned long n;

	if (count != 4)
		fail("usage: baseline FOLDER MEMORY_SIZE TICK");
	setvbuf(stdout, NULL, _IOLBF, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL); /* a guest that never leaves must not outlive who waits for it */
	folder = arguments[1];
	memory_size = strtoull(arguments[2], NULL, 0);
	tick = strtoull(arguments[3], NULL, 0);
	image = load("memory", &image_size);
	load_registers();
	load_msrs();
	start(&running);
	while (scanf("%15s %lu", name, &n) == 2)
		printf("%llu\n", (unsigned long long)measure(name, n));
	return 0;
}
