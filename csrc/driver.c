/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * The split virtqueue, driver side. The links of chains are kept in our own memory (next, count): nothing that a
 * device can write is ever followed.
 */
#include <string.h>

#include "core.h"

void vh_driver_init(struct vh_driver *d)
{
    for (uint32_t i = 0; i < d->num; i++) {
        d->next[i] = (uint16_t)(i + 1);
        d->count[i] = 0;
    }
    d->n_free = d->num;
    d->free_head = 0;
}

static void fill(void *table, uint32_t i, const struct vh_buf *buf, uint16_t flags, uint16_t next)
{
    struct desc d = {htole64(buf->gpa), htole32(buf->len), htole16(flags), htole16(next)};

    memcpy((char *)table + (size_t)i * DESC_SIZE, &d, DESC_SIZE);
}

/* Take one free descriptor; there is one. */
static uint16_t take(struct vh_driver *d)
{
    uint16_t i = d->free_head;

    d->free_head = d->next[i];
    d->n_free--;
    return i;
}

static uint16_t flags_of(const struct vh_buf *bufs, uint32_t i, uint32_t n)
{
    return (uint16_t)((bufs[i].write ? DESC_WRITE : 0) | (i + 1 < n ? DESC_NEXT : 0));
}

/* Queue a chain, readable buffers first; returns its head. The device sees it after vh_driver_publish(). */
int vh_driver_add(struct vh_driver *d, const struct vh_buf *bufs, uint32_t n)
{
    struct avail *avail = d->avail;
    bool indirect = d->tables && n > 1 && n <= d->table_len;
    uint16_t head, i;

    if (!n || (!indirect && n > d->num))
        return VH_D_TOO_BIG;
    if (d->n_free < (indirect ? 1 : n))
        return VH_D_FULL;
    head = i = take(d);
    if (indirect) {
        uint64_t at = (uint64_t)head * d->table_len * DESC_SIZE;
        struct vh_buf table = {d->tables_gpa + at, n * DESC_SIZE, 0};

        for (uint32_t k = 0; k < n; k++)
            fill((char *)d->tables + at, k, &bufs[k], flags_of(bufs, k, n), (uint16_t)(k + 1));
        fill(d->desc, head, &table, DESC_INDIRECT, 0);
    } else {
        for (uint32_t k = 0; k < n; k++) {
            uint16_t next = k + 1 < n ? take(d) : 0;

            fill(d->desc, i, &bufs[k], flags_of(bufs, k, n), next);
            d->next[i] = next;
            i = next;
        }
    }
    d->count[head] = (uint16_t)(indirect ? 1 : n);
    store16(&avail->ring[d->avail_idx & (d->num - 1)], head, false);
    d->avail_idx++;
    return head;
}

/* Show the device what was added. Returns 1 if it wants a kick. */
int vh_driver_publish(struct vh_driver *d)
{
    struct avail *avail = d->avail;
    struct used *used = d->used;
    uint16_t old = d->kicked_idx;

    store16_release(&avail->idx, d->avail_idx, false);
    fence();
    d->kicked_idx = d->avail_idx;
    if (d->features & VH_F_EVENT_IDX)
        return event_passed(load16(avail_event(used, d->num), false), d->avail_idx, old);
    return !(load16(&used->flags, false) & USED_NO_NOTIFY);
}

static void release(struct vh_driver *d, uint16_t head)
{
    uint16_t last = head;

    for (uint16_t k = 1; k < d->count[head]; k++)
        last = d->next[last];
    d->n_free += d->count[head];
    d->count[head] = 0;
    d->next[last] = d->free_head;
    d->free_head = head;
}

/* Take what the device returned, up to max; ids are checked against the chains in flight. */
int vh_driver_poll(struct vh_driver *d, struct vh_used *out, uint32_t max)
{
    const struct used *used = d->used;
    uint16_t ahead = (uint16_t)(load16_acquire(&used->idx, false) - d->last_used);
    uint32_t n;

    if (ahead > d->num)
        return VH_D_BAD_USED;
    for (n = 0; n < ahead && n < max; n++) {
        uint32_t slot = d->last_used & (d->num - 1);
        uint32_t id = le32toh(__atomic_load_n(&used->ring[slot].id, __ATOMIC_RELAXED));
        uint32_t len = le32toh(__atomic_load_n(&used->ring[slot].len, __ATOMIC_RELAXED));

        if (id >= d->num || !d->count[id])
            return VH_D_BAD_USED;
        release(d, (uint16_t)id);
        out[n] = (struct vh_used){id, len};
        d->last_used++;
    }
    return (int)n;
}

void vh_driver_calls_off(struct vh_driver *d)
{
    struct avail *avail = d->avail;

    if (!(d->features & VH_F_EVENT_IDX))
        store16(&avail->flags, AVAIL_NO_INTERRUPT, false);
}

/* Ask for a call at the next used element. Returns 1 if one is there already, for which no call may come. */
int vh_driver_calls_on(struct vh_driver *d)
{
    struct avail *avail = d->avail;
    const struct used *used = d->used;

    if (d->features & VH_F_EVENT_IDX)
        store16(used_event(avail, d->num), d->last_used, false);
    else
        store16(&avail->flags, 0, false);
    fence();
    return load16_acquire(&used->idx, false) != d->last_used;
}
