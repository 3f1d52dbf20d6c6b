/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* The split ring, driver side, in either byte order. The name of a chain is its first descriptor. */
#include <string.h>

#include "driver.h"

#define INLINE static inline __attribute__((always_inline))

INLINE void write_desc(void *table, uint32_t i, const struct vh_buf *buf, uint16_t flags, uint16_t next, bool big)
{
    struct desc d = {big ? htobe64(buf->gpa) : htole64(buf->gpa), order32(buf->len, big), order16(flags, big),
                     order16(next, big)};

    memcpy((char *)table + (size_t)i * DESC_SIZE, &d, DESC_SIZE);
}

INLINE uint16_t flags_of(const struct vh_buf *bufs, uint32_t i, uint32_t n)
{
    return (uint16_t)((bufs[i].write ? DESC_WRITE : 0) | (i + 1 < n ? DESC_NEXT : 0));
}

/*
 * Descriptors are taken from the list of free ones, which is linked as the chain is going to be. With IN_ORDER they
 * are taken around the ring (virtio 1.3, 2.7.9), and come back in that order too.
 */
static uint16_t take_id(struct vh_driver *d, uint32_t n)
{
    uint16_t id = d->free_id, last = id;

    if (d->features & VH_F_IN_ORDER) {
        d->free_id = (uint16_t)((id + n) & (d->num - 1));
        return id;
    }
    while (--n)
        last = d->flight[last].next;
    d->free_id = d->flight[last].next;
    return id;
}

static void give_id(struct vh_driver *d, uint16_t id)
{
    uint16_t last = id;

    if (d->features & VH_F_IN_ORDER)
        return;
    for (uint32_t k = 1; k < d->flight[id].count; k++)
        last = d->flight[last].next;
    d->flight[last].next = d->free_id;
    d->free_id = id;
}

INLINE void put(struct vh_driver *d, uint16_t id, const struct vh_buf *bufs, uint32_t n, uint16_t extra, bool big)
{
    struct avail *avail = d->avail;
    bool in_order = d->features & VH_F_IN_ORDER;
    uint16_t i = id;

    for (uint32_t k = 0; k < n; k++) {
        uint16_t next = in_order ? (uint16_t)((i + 1u) & (d->num - 1)) : d->flight[i].next;

        write_desc(d->desc, i, &bufs[k], flags_of(bufs, k, n) | extra, k + 1 < n ? next : 0, big);
        i = next;
    }
    store16(&avail->ring[d->avail_idx & (d->num - 1)], id, big);
    d->avail_idx++;
}

INLINE void fill(void *table, const struct vh_buf *bufs, uint32_t n, bool big)
{
    for (uint32_t k = 0; k < n; k++)
        write_desc(table, k, &bufs[k], flags_of(bufs, k, n), (uint16_t)(k + 1 < n ? k + 1 : 0), big);
}

INLINE bool show(struct vh_driver *d, bool big)
{
    struct avail *avail = d->avail;
    struct used *used = d->used;

    store16_release(&avail->idx, d->avail_idx, big);
    fence();
    if (d->features & VH_F_EVENT_IDX)
        return event_passed(load16(avail_event(used, d->num), big), d->avail_idx, d->kicked_idx);
    return !(load16(&used->flags, big) & USED_NO_NOTIFY);
}

INLINE bool look(struct vh_driver *d, bool big)
{
    const struct used *used = d->used;

    d->used_seen = load16_acquire(&used->idx, big);
    return (uint16_t)(d->used_seen - d->last_used) <= d->shown - d->returned;
}

INLINE bool next(const struct vh_driver *d, struct vh_used *out, bool big)
{
    const struct used *used = d->used;
    const struct used_elem *e = &used->ring[d->last_used & (d->num - 1)];

    if (d->used_seen == d->last_used)
        return false;
    out->id = order32(__atomic_load_n(&e->id, __ATOMIC_RELAXED), big);
    out->len = order32(__atomic_load_n(&e->len, __ATOMIC_RELAXED), big);
    return true;
}

static void pass(struct vh_driver *d, uint32_t count)
{
    (void)count;
    d->last_used++;
}

INLINE void calls_off(struct vh_driver *d, bool big)
{
    struct avail *avail = d->avail;

    if (d->features & VH_F_EVENT_IDX)
        store16(used_event(avail, d->num), (uint16_t)(d->last_used - 1), big); /* once around from here */
    else
        store16(&avail->flags, AVAIL_NO_INTERRUPT, big);
}

INLINE void calls_on(struct vh_driver *d, bool big)
{
    struct avail *avail = d->avail;

    if (d->features & VH_F_EVENT_IDX)
        store16(used_event(avail, d->num), d->last_used, big);
    else
        store16(&avail->flags, 0, big);
}

#define BYTE_ORDER_OF(name, big)                                                                                      \
    static void put_##name(struct vh_driver *d, uint16_t id, const struct vh_buf *bufs, uint32_t n, uint16_t flags)  \
    {                                                                                                                 \
        put(d, id, bufs, n, flags, big);                                                                              \
    }                                                                                                                 \
    static void fill_##name(const struct vh_driver *d, void *table, const struct vh_buf *bufs, uint32_t n)           \
    {                                                                                                                 \
        (void)d;                                                                                                      \
        fill(table, bufs, n, big);                                                                                    \
    }                                                                                                                 \
    static bool show_##name(struct vh_driver *d) { return show(d, big); }                                             \
    static bool look_##name(struct vh_driver *d) { return look(d, big); }                                             \
    static bool next_##name(const struct vh_driver *d, struct vh_used *used) { return next(d, used, big); }           \
    static void calls_off_##name(struct vh_driver *d) { calls_off(d, big); }                                          \
    static void calls_on_##name(struct vh_driver *d) { calls_on(d, big); }                                            \
    const struct ring_driver vh_##name##_driver = {                                                                   \
        take_id, give_id, put_##name, fill_##name, show_##name, look_##name, next_##name, pass,                       \
        calls_off_##name, calls_on_##name,                                                                            \
    }

BYTE_ORDER_OF(split, false);
BYTE_ORDER_OF(split_big, true);
