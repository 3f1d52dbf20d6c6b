/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* The driver's side of a split ring. Chain `slot` always has descriptors slot * CHAIN_MAX and up. */
#include <linux/virtio_ring.h>
#include <stdatomic.h>
#include <string.h>

#include "guest.h"

_Static_assert(CHAINS * CHAIN_MAX <= QUEUE, "every chain has descriptors of its own");

static struct vring_desc *descriptors;
static struct vring_avail *avail;
static struct vring_used *used;
static uint16_t shown, taken;
static bool busy[CHAINS];

void ring_start(const struct pages *pages, bool polling)
{
    descriptors = (void *)pages->at;
    avail = (void *)(pages->at + PAGE);
    used = (void *)(pages->at + 2 * (size_t)PAGE);
    shown = taken = 0;
    memset(busy, 0, sizeof busy);
    avail->flags = polling ? VRING_AVAIL_F_NO_INTERRUPT : 0;
}

void chain_add(struct chain *chain, const struct pages *pages, uint32_t offset, uint32_t bytes, bool write)
{
    for (uint32_t first = chain->n, n; bytes; offset += n, bytes -= n) {
        uint64_t address = pages->address[offset / PAGE] + offset % PAGE;
        n = PAGE - offset % PAGE < bytes ? PAGE - offset % PAGE : bytes;
        uint32_t last = chain->n - 1;
        if (chain->n > first && chain->part[last].address + chain->part[last].bytes == address) {
            chain->part[last].bytes += n;
            continue;
        }
        if (chain->n == CHAIN_MAX)
            die("a chain of more than %u parts", CHAIN_MAX);
        chain->part[chain->n].address = address;
        chain->part[chain->n].bytes = n;
        chain->part[chain->n++].device_writes = write;
    }
}

static void fill(struct vring_desc *table, uint32_t first, const struct chain *chain)
{
    for (uint32_t i = 0; i < chain->n; i++) {
        struct vring_desc *to = &table[first + i];
        bool last = i + 1 == chain->n;
        to->addr = chain->part[i].address;
        to->len = chain->part[i].bytes;
        to->flags = chain->part[i].device_writes ? VRING_DESC_F_WRITE : 0;
        to->flags |= last ? 0 : VRING_DESC_F_NEXT;
        to->next = (uint16_t)(last ? 0 : first + i + 1);
    }
}

void ring_put(uint32_t slot, const struct chain *chain, const struct pages *tables, uint32_t table)
{
    uint32_t head = slot * CHAIN_MAX;

    if (tables) {
        struct chain whole = {.n = 0};
        chain_add(&whole, tables, table, chain->n * (uint32_t)sizeof(struct vring_desc), false);
        fill((void *)(tables->at + table), 0, chain);
        fill(descriptors, head, &whole);
        descriptors[head].flags = VRING_DESC_F_INDIRECT;
    } else {
        fill(descriptors, head, chain);
    }
    busy[slot] = true;
    avail->ring[shown % QUEUE] = (uint16_t)head;
    __atomic_store_n(&avail->idx, ++shown, __ATOMIC_RELEASE);
}

bool ring_kick(void)
{
    atomic_thread_fence(memory_order_seq_cst);
    return !(__atomic_load_n(&used->flags, __ATOMIC_RELAXED) & VRING_USED_F_NO_NOTIFY);
}

bool ring_get(uint32_t *slot, uint32_t *written)
{
    uint16_t end = __atomic_load_n(&used->idx, __ATOMIC_ACQUIRE);

    if (end == taken)
        return false;
    if ((uint16_t)(end - taken) > (uint16_t)(shown - taken))
        die("used index %u, but %u chains were made available", end, shown);
    uint32_t head = used->ring[taken % QUEUE].id;
    *written = used->ring[taken % QUEUE].len;
    *slot = head / CHAIN_MAX;
    if (head % CHAIN_MAX || *slot >= CHAINS || !busy[*slot])
        die("chain %u came back, which was not with the device", head);
    busy[*slot] = false;
    taken++;
    return true;
}
