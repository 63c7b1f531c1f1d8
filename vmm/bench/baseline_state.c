/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Part of baseline.c: a vCPU's whole state, read and written back by plain ioctl(2), call by call what
 * vmm.state does: the same structures, the same MSRs (`msrs` in FOLDER: 32-bit indices of those that KVM lets
 * be read), the same order.
 */
#define MOST_MSRS 256
#define MOST_XSAVE (64 << 10)

static struct {
	struct kvm_mp_state mp_state;
	struct kvm_regs regs;
	struct kvm_sregs2 sregs;
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debugregs;
	struct kvm_vcpu_events events;
	int tsc_khz;
	uint8_t xsave[MOST_XSAVE];
	union {
		struct kvm_cpuid2 table;
		uint8_t room[sizeof(struct kvm_cpuid2) + CPUID_ENTRIES * sizeof(struct kvm_cpuid_entry2)];
	} cpuid;
	union {
		struct kvm_msrs list;
		uint8_t room[sizeof(struct kvm_msrs) + MOST_MSRS * sizeof(struct kvm_msr_entry)];
	} msrs, tsc, xfd;
} state;

static int has_xfd;

static void load_msrs(void)
{
	size_t size;
	uint32_t *indices = load("msrs", &size);

	state.msrs.list.nmsrs = (uint32_t)(size / sizeof(*indices));
	if (state.msrs.list.nmsrs > MOST_MSRS)
		fail("%u MSRs are more than there is room for", state.msrs.list.nmsrs);
	for (uint32_t i = 0; i < state.msrs.list.nmsrs; i++)
		state.msrs.list.entries[i].index = indices[i];
	state.tsc.list.nmsrs = 1;
	state.tsc.list.entries[0].index = 0x10;
	/* IA32_XFD and IA32_XFD_ERR, which have to be written before the XSAVE area. */
	state.xfd.list.nmsrs = 2;
	state.xfd.list.entries[0].index = 0x1c4;
	state.xfd.list.entries[1].index = 0x1c5;
	free(indices);
}

static void call_msrs(int fd, unsigned long request, struct kvm_msrs *list, const char *name)
{
	if (call(fd, request, list, name) != (int)list->nmsrs)
		fail("%s stopped before the end of its list", name);
}

static void save_state(int fd)
{
	CALL(fd, KVM_GET_MP_STATE, &state.mp_state);
	CALL(fd, KVM_GET_REGS, &state.regs);
	CALL(fd, KVM_GET_SREGS2, &state.sregs);
	CALL(fd, KVM_GET_XSAVE2, state.xsave);
	CALL(fd, KVM_GET_XCRS, &state.xcrs);
	if (has_xfd)
		call_msrs(fd, KVM_GET_MSRS, &state.xfd.list, "KVM_GET_MSRS");
	CALL(fd, KVM_GET_DEBUGREGS, &state.debugregs);
	state.cpuid.table.nent = CPUID_ENTRIES;
	CALL(fd, KVM_GET_CPUID2, &state.cpuid.table);
	state.tsc_khz = CALL(fd, KVM_GET_TSC_KHZ, 0);
	call_msrs(fd, KVM_GET_MSRS, &state.msrs.list, "KVM_GET_MSRS");
	CALL(fd, KVM_GET_VCPU_EVENTS, &state.events);
	call_msrs(fd, KVM_GET_MSRS, &state.tsc.list, "KVM_GET_MSRS");
}

static void restore_state(int fd)
{
	CALL(fd, KVM_SET_CPUID2, &state.cpuid.table);
	if (CALL(fd, KVM_GET_TSC_KHZ, 0) != state.tsc_khz)
		CALL(fd, KVM_SET_TSC_KHZ, (uintptr_t)state.tsc_khz);
	CALL(fd, KVM_SET_SREGS2, &state.sregs);
	CALL(fd, KVM_SET_XCRS, &state.xcrs);
	if (has_xfd)
		call_msrs(fd, KVM_SET_MSRS, &state.xfd.list, "KVM_SET_MSRS");
	CALL(fd, KVM_SET_XSAVE, state.xsave);
	call_msrs(fd, KVM_SET_MSRS, &state.msrs.list, "KVM_SET_MSRS");
	call_msrs(fd, KVM_SET_MSRS, &state.tsc.list, "KVM_SET_MSRS");
	CALL(fd, KVM_SET_REGS, &state.regs);
	CALL(fd, KVM_SET_DEBUGREGS, &state.debugregs);
	CALL(fd, KVM_SET_MP_STATE, &state.mp_state);
	CALL(fd, KVM_SET_VCPU_EVENTS, &state.events);
}

static uint64_t measure_states(unsigned long n)
{
	uint64_t begin;

	has_xfd = CALL(running.vcpu, KVM_GET_MSRS, &state.xfd.list) == 2;
	begin = now_ns();

	while (n--) {
		save_state(running.vcpu);
		restore_state(running.vcpu);
	}
	return now_ns() - begin;
}
