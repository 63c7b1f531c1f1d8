/* SPDX-License-Identifier: Apache-2.0 */
/* The shim's interface; shim.h says what each part is for. */

long vmm_ioctl(int fd, unsigned long request, void *argument);
long vmm_ioctl_value(int fd, unsigned long request, unsigned long argument);

#define VMM_RUN_EXIT ...
#define VMM_RUN_BUDGET ...
#define VMM_RUN_DEADLINE ...
#define VMM_RUN_STOPPED ...
#define VMM_RUN_SIGNAL ...

struct vmm_run_control {
    int fd;
    struct kvm_run *run;
    uint64_t tick;
    uint64_t budget;
    uint64_t timeout_ns;
    uint64_t absorbed;
    uint64_t entries;
    int stop;
    ...;
};

long vmm_run(struct vmm_run_control *control);
long vmm_kick(struct vmm_run_control *control);
int vmm_kick_signal(void);
size_t vmm_written_length(const uint8_t *buffer, size_t size, uint8_t poison);
long vmm_die_with_parent(int parent);
