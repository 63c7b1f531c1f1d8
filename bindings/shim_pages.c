/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory page by page, for migration: what a Python loop would be too slow for. Included by shim.c.
 *
 * A page is 4096 bytes on every host. Its digest is NH (Black, Halevi, Krawczyk, Krovetz, Rogaway: UMAC, 1999)
 * with 64-bit words, less what a page of zeros gives: whatever the two pages are, if they differ, a random key
 * gives them equal digests with probability 2^-64 or less. A page of zeros has the digest 0.
 */

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>

#ifndef MADV_POPULATE_WRITE /* Linux 5.14, glibc 2.35 */
#define MADV_POPULATE_WRITE 23
#endif
#define PAGE_WORDS (VMM_PAGE / sizeof(uint64_t))
#define MAX_PIECES 1024 /* UIO_MAXIOV of Linux */

__extension__ typedef unsigned __int128 wide;

static wide nh(const uint64_t *words, const uint64_t *key, uint64_t *any)
{
    wide even = 0, odd = 0;
    uint64_t seen = 0;

    for (size_t i = 0; i < PAGE_WORDS; i += 4) {
        even += (wide)(words[i] + key[i]) * (words[i + 1] + key[i + 1]);
        odd += (wide)(words[i + 2] + key[i + 2]) * (words[i + 3] + key[i + 3]);
        seen |= words[i] | words[i + 1] | words[i + 2] | words[i + 3];
    }
    *any = seen;
    return even + odd;
}

static wide digest_of_zeros(const uint64_t *key)
{
    wide sum = 0;

    for (size_t i = 0; i < PAGE_WORDS; i += 2)
        sum += (wide)key[i] * key[i + 1];
    return sum;
}

static void digest_page(const uint8_t *page, const uint64_t *key, wide zeros, struct vmm_page_digest *digest)
{
    uint64_t any;
    wide value = nh((const uint64_t *)page, key, &any);

    value = any ? value - zeros : 0;
    digest->low = (uint64_t)value;
    digest->high = (uint64_t)(value >> 64);
}

static int is_full(const uint8_t *page)
{
    const uint64_t *words = (const uint64_t *)page;

    for (size_t i = 0; i < PAGE_WORDS; i += 8) {
        uint64_t any = 0;
        for (size_t j = 0; j < 8; j++)
            any |= words[i + j];
        if (any)
            return 1;
    }
    return 0;
}

static int is_dirty(const uint64_t *bitmap, uint64_t bit)
{
    return bitmap[bit / 64] >> (bit % 64) & 1;
}

/* The first page from `page` on whose bit is set, or `end`. Whole words of zeros are skipped. */
static uint64_t next_dirty(const uint64_t *bitmap, uint64_t page, uint64_t end, uint64_t pages_per_bit)
{
    while (page < end) {
        uint64_t bit = page / pages_per_bit;
        if (!bitmap[bit / 64])
            page = (bit / 64 + 1) * 64 * pages_per_bit;
        else if (!is_dirty(bitmap, bit))
            page = (bit + 1) * pages_per_bit;
        else
            return page;
    }
    return end;
}

size_t vmm_scan_pages(struct vmm_scan *scan, struct vmm_page_run *runs, size_t most_runs, uint64_t most_pages)
{
    uint64_t page = scan->next, data = 0;
    size_t count = 0;

    for (;;) {
        page = next_dirty(scan->bitmap, page, scan->end, scan->pages_per_bit);
        if (page >= scan->end || data >= most_pages)
            break;
        uint32_t full = (uint32_t)is_full(scan->memory + page * VMM_PAGE);
        struct vmm_page_digest *digest = scan->digests + page;
        if (!full && (digest->low || digest->high))
            *digest = (struct vmm_page_digest){0, 0};
        struct vmm_page_run *last = count ? runs + count - 1 : NULL;
        if (last && last->full == full && last->first + last->count == page) {
            last->count++;
        } else {
            /* The page is looked at again in the next call. */
            if (count == most_runs)
                break;
            runs[count++] = (struct vmm_page_run){.first = (uint32_t)page, .count = 1, .full = full};
        }
        data += full;
        page++;
    }
    scan->next = page;
    return count;
}

long vmm_check_runs(const struct vmm_page_run *runs, size_t count, uint64_t pages)
{
    uint64_t next = 0, data = 0;

    for (size_t i = 0; i < count; i++) {
        if (runs[i].first < next || !runs[i].count || runs[i].full > 1)
            return -EINVAL;
        next = (uint64_t)runs[i].first + runs[i].count;
        if (next > pages)
            return -EINVAL;
        data += runs[i].full ? runs[i].count : 0;
    }
    return (long)data;
}

void vmm_digest_runs(const struct vmm_transfer *transfer)
{
    wide zeros = digest_of_zeros(transfer->key);

    for (size_t i = 0; i < transfer->count; i++) {
        const struct vmm_page_run *run = transfer->runs + i;
        for (uint64_t page = run->first; run->full && page < (uint64_t)run->first + run->count; page++)
            digest_page(transfer->memory + page * VMM_PAGE, transfer->key, zeros, transfer->digests + page);
    }
}

void vmm_clear_runs(const struct vmm_transfer *transfer)
{
    for (size_t i = 0; i < transfer->count; i++) {
        const struct vmm_page_run *run = transfer->runs + i;
        for (uint64_t page = run->first; !run->full && page < (uint64_t)run->first + run->count; page++) {
            struct vmm_page_digest *digest = transfer->digests + page;
            if (!digest->low && !digest->high)
                continue; /* it is zero already: writing it would only make it resident */
            memset(transfer->memory + page * VMM_PAGE, 0, VMM_PAGE);
            *digest = (struct vmm_page_digest){0, 0};
        }
    }
}

/* The pages with data that come next, as many as make a block; where the block after it begins goes to `next`. */
static size_t next_block(const struct vmm_transfer *transfer, struct iovec *block, struct vmm_transfer *next)
{
    size_t pieces = 0;
    uint64_t pages = 0;

    *next = *transfer;
    while (next->run < next->count && pages < next->block_pages && pieces < MAX_PIECES) {
        const struct vmm_page_run *run = next->runs + next->run;
        uint64_t left = run->full ? run->count - next->page : 0;
        uint64_t room = next->block_pages - pages, taken = left < room ? left : room;
        if (taken) {
            uint64_t first = (uint64_t)run->first + next->page;
            block[pieces++] = (struct iovec){next->memory + first * VMM_PAGE, taken * VMM_PAGE};
            pages += taken;
            next->page += taken;
        }
        if (taken == left) {
            next->run++;
            next->page = 0;
        }
    }
    next->done = 0;
    return pieces;
}

static void digest_block(const struct vmm_transfer *transfer, const struct iovec *block, size_t pieces, wide zeros)
{
    for (size_t i = 0; i < pieces; i++) {
        const uint8_t *base = block[i].iov_base;
        struct vmm_page_digest *digest = transfer->digests + (size_t)(base - transfer->memory) / VMM_PAGE;
        for (size_t at = 0; at < block[i].iov_len; at += VMM_PAGE)
            digest_page(base + at, transfer->key, zeros, digest++);
    }
}

/* Send or receive what is left of a block after `done` bytes. 0, or -errno. */
static long move_block(struct vmm_transfer *transfer, const struct iovec *block, size_t pieces, int sending)
{
    for (;;) {
        struct iovec left[MAX_PIECES];
        struct msghdr message;
        size_t skip = transfer->done, count = 0;

        for (size_t i = 0; i < pieces; i++) {
            if (skip >= block[i].iov_len) {
                skip -= block[i].iov_len;
                continue;
            }
            left[count++] = (struct iovec){(uint8_t *)block[i].iov_base + skip, block[i].iov_len - skip};
            skip = 0;
        }
        if (!count)
            return 0;
        memset(&message, 0, sizeof(message));
        message.msg_iov = left;
        message.msg_iovlen = count;
        ssize_t moved = sending ? sendmsg(transfer->fd, &message, MSG_NOSIGNAL)
                                : recvmsg(transfer->fd, &message, MSG_WAITALL);
        if (moved < 0)
            return -errno;
        if (!moved)
            return -ENODATA;
        transfer->done += (uint64_t)moved;
    }
}

static long transfer_runs(struct vmm_transfer *transfer, int sending)
{
    wide zeros = digest_of_zeros(transfer->key);
    struct iovec block[MAX_PIECES];
    struct vmm_transfer next;
    size_t pieces;

    while ((pieces = next_block(transfer, block, &next))) {
        if (sending && !transfer->done)
            digest_block(transfer, block, pieces, zeros);
        long error = move_block(transfer, block, pieces, sending);
        if (error)
            return error;
        if (!sending)
            digest_block(transfer, block, pieces, zeros);
        *transfer = next;
    }
    return 0;
}

long vmm_send_runs(struct vmm_transfer *transfer)
{
    return transfer_runs(transfer, 1);
}

long vmm_receive_runs(struct vmm_transfer *transfer)
{
    return transfer_runs(transfer, 0);
}

uint64_t vmm_compare_pages(const struct vmm_scan *scan, uint64_t first)
{
    wide zeros = digest_of_zeros(scan->key);
    struct vmm_page_digest now;

    for (uint64_t page = first; page < scan->end; page++) {
        if (is_dirty(scan->bitmap, page / scan->pages_per_bit))
            continue;
        digest_page(scan->memory + page * VMM_PAGE, scan->key, zeros, &now);
        if (now.low != scan->digests[page].low || now.high != scan->digests[page].high)
            return page;
    }
    return scan->end;
}

long vmm_harvest_ring(struct vmm_dirty_ring *ring, uint64_t *const *bitmaps, const uint64_t *bits, uint32_t slots)
{
    long harvested = 0;

    for (;;) {
        struct kvm_dirty_gfn *entry = ring->entries + (ring->next & (ring->size - 1));
        /* The flag is what publishes slot and offset, and what gives the entry back. */
        if (__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY)
            return harvested;
        if (entry->slot >= slots || entry->offset >= bits[entry->slot])
            return -ERANGE;
        bitmaps[entry->slot][entry->offset / 64] |= (uint64_t)1 << (entry->offset % 64);
        __atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
        ring->next++;
        harvested++;
    }
}

long vmm_populate(void *address, size_t size)
{
    return madvise(address, size, MADV_POPULATE_WRITE) ? -errno : 0;
}
