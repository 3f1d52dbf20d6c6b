/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* The packed ring, driver side (virtio 1.3, 2.8). The name of a chain is its buffer id. */
#include <string.h>

#include "driver.h"

static void write_desc(void *table, uint32_t i, const struct vh_buf *buf, uint16_t id)
{
    /* The flags stay as they are: they tell whose the descriptor is, and come last. */
    struct __attribute__((packed)) {
        uint64_t addr;
        uint32_t len;
        uint16_t id;
    } d = {htole64(buf->gpa), htole32(buf->len), htole16(id)};

    _Static_assert(sizeof d == offsetof(struct packed_desc, flags), "all but the flags");
    memcpy((char *)table + (size_t)i * DESC_SIZE, &d, sizeof d);
}

static uint16_t *flags_at(const struct vh_driver *d, uint32_t i)
{
    return &((struct packed_desc *)d->desc)[i].flags;
}

static uint16_t take_id(struct vh_driver *d, uint32_t n)
{
    uint16_t id = d->free_id;

    (void)n;
    d->free_id = d->flight[id].next;
    return id;
}

static void give_id(struct vh_driver *d, uint16_t id)
{
    d->flight[id].next = d->free_id;
    d->free_id = id;
}

static void put(struct vh_driver *d, uint16_t id, const struct vh_buf *bufs, uint32_t n, uint16_t extra)
{
    for (uint32_t k = 0; k < n; k++) {
        uint16_t i = d->avail_idx, flags = extra | (d->avail_wrap ? DESC_AVAIL : DESC_USED);

        flags |= (uint16_t)((bufs[k].write ? DESC_WRITE : 0) | (k + 1 < n ? DESC_NEXT : 0));
        write_desc(d->desc, i, &bufs[k], k + 1 < n ? 0 : id);
        if (d->shown == d->added && !k) {
            d->first = i;
            d->first_flags = flags;
        } else {
            store16(flags_at(d, i), flags, false);
        }
        if (++d->avail_idx == d->num) {
            d->avail_idx = 0;
            d->avail_wrap ^= 1;
        }
    }
}

static void fill(const struct vh_driver *d, void *table, const struct vh_buf *bufs, uint32_t n)
{
    (void)d;
    for (uint32_t k = 0; k < n; k++) {
        write_desc(table, k, &bufs[k], 0);
        ((struct packed_desc *)table)[k].flags = htole16(bufs[k].write ? DESC_WRITE : 0);
    }
}

static bool show(struct vh_driver *d)
{
    const struct packed_event *event = d->used;
    uint32_t word;
    uint16_t flags;

    if (d->shown == d->added)
        return false;
    /* The device reads in order, so this makes available all that follows too. */
    store16_release(flags_at(d, d->first), d->first_flags, false);
    fence();
    __atomic_load((const uint32_t *)(const void *)event, &word, __ATOMIC_RELAXED);
    word = le32toh(word);
    flags = (word >> 16) & 3;
    if (flags == EVENT_DESC && d->features & VH_F_EVENT_IDX)
        return packed_event_passed((uint16_t)word, d->avail_idx, d->avail_wrap, d->kicked_idx, d->num);
    return flags != EVENT_DISABLE;
}

static bool look(struct vh_driver *d)
{
    (void)d;
    return true; /* there is no index; a used element beyond what is in flight has an id that is not */
}

static bool next(const struct vh_driver *d, struct vh_used *used)
{
    const struct packed_desc *at = &((const struct packed_desc *)d->desc)[d->last_used];
    uint16_t flags = load16_acquire(&at->flags, false);

    if (!packed_is_used(flags, d->used_wrap))
        return false;
    used->id = load16(&at->id, false);
    /* Without the flag the length means nothing (2.8.4): some devices leave the buffer's own there. */
    used->len = flags & DESC_WRITE ? le32toh(__atomic_load_n(&at->len, __ATOMIC_RELAXED)) : 0;
    return true;
}

static void pass(struct vh_driver *d, uint32_t count)
{
    uint32_t to = d->last_used + count;

    if (to >= d->num) {
        to -= d->num;
        d->used_wrap ^= 1;
    }
    d->last_used = (uint16_t)to;
}

static void calls_off(struct vh_driver *d)
{
    struct packed_event *event = d->avail;

    store16(&event->flags, EVENT_DISABLE, false);
}

static void calls_on(struct vh_driver *d)
{
    struct packed_event *event = d->avail;

    if (!(d->features & VH_F_EVENT_IDX)) {
        store16(&event->flags, EVENT_ENABLE, false);
        return;
    }
    store16(&event->off_wrap, (uint16_t)(d->last_used | (d->used_wrap ? WRAP : 0)), false);
    store16_release(&event->flags, EVENT_DESC, false);
}

const struct ring_driver vh_packed_driver = {
    take_id, give_id, put, fill, show, look, next, pass, calls_off, calls_on,
};
