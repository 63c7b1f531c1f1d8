/* SPDX-License-Identifier: Apache-2.0 */
/* The shim's interface; shim.h says what each part is for. */

long vmm_ioctl(int fd, unsigned long request, void *argument);
long vmm_ioctl_value(int fd, unsigned long request, unsigned long argument);

struct vmm_call {
    unsigned long request;
    void *argument;
    long wanted;
    long result;
};

size_t vmm_ioctls(int fd, struct vmm_call *calls, size_t count);

#define VMM_RUN_EXIT ...
#define VMM_RUN_BUDGET ...
#define VMM_RUN_DEADLINE ...
#define VMM_RUN_STOPPED ...
#define VMM_RUN_SIGNAL ...

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
    int no_timer;
    struct vmm_own_shadow *shadow;
    ...;
};

long vmm_run(struct vmm_run_control *control);
long vmm_kick(struct vmm_run_control *control);
int vmm_kick_signal(void);
size_t vmm_written_length(const uint8_t *buffer, size_t size, uint8_t poison);
long vmm_flush(uint64_t base, const uint64_t *ranges, size_t count);
size_t vmm_flush_line(void);
const char *vmm_flush_name(void);
long vmm_die_with_parent(int parent);
long vmm_fork(void);
long vmm_trace_me(void);

#define VMM_PAGE ...

struct vmm_page_digest {
    uint64_t low;
    uint64_t high;
};

struct vmm_page_run {
    uint32_t first;
    uint32_t count;
    uint32_t full;
};

struct vmm_scan {
    const uint8_t *memory;
    const uint64_t *bitmap;
    const uint64_t *key;
    struct vmm_page_digest *digests;
    uint64_t next;
    uint64_t end;
    uint64_t pages_per_bit;
};

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

struct vmm_dirty_ring {
    struct kvm_dirty_gfn *entries;
    uint32_t size;
    uint32_t next;
};

size_t vmm_scan_pages(struct vmm_scan *scan, struct vmm_page_run *runs, size_t most_runs, uint64_t most_pages);
long vmm_check_runs(const struct vmm_page_run *runs, size_t count, uint64_t pages);
long vmm_send_runs(struct vmm_transfer *transfer);
long vmm_receive_runs(struct vmm_transfer *transfer);
void vmm_digest_runs(const struct vmm_transfer *transfer);
void vmm_clear_runs(const struct vmm_transfer *transfer);
uint64_t vmm_compare_pages(const struct vmm_scan *scan, uint64_t first);
long vmm_populate(void *address, size_t size);
long vmm_harvest_ring(struct vmm_dirty_ring *ring, uint64_t *const *bitmaps, const uint64_t *bits, uint32_t slots);
