/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * Virtqueues, driver side: what is in flight, and what may come back. The device can write whatever it likes to
 * the ring: an id of its is looked up in our own records, and nothing else of what it writes decides anything.
 */
#include "driver.h"

#define NOT_THERE UINT64_MAX

static const struct ring_driver *const kinds[] = {
    [VH_SPLIT] = &vh_split_driver,
    [VH_SPLIT_BIG] = &vh_split_big_driver,
    [VH_PACKED] = &vh_packed_driver,
};

/* Start from scratch, on memory that is all zero. */
void vh_driver_init(struct vh_driver *d)
{
    for (uint32_t i = 0; i < d->num; i++)
        d->flight[i] = (struct vh_flight){.seq = NOT_THERE, .next = (uint16_t)(i + 1)};
    d->batch = 0;
    d->added = d->shown = d->returned = 0;
    d->n_free = d->num;
    d->free_id = d->avail_idx = d->kicked_idx = d->last_used = d->used_seen = 0;
    d->order_in = d->order_out = d->first = d->first_flags = 0;
    d->avail_wrap = d->used_wrap = 1;
}

static uint32_t room_of(const struct vh_buf *bufs, uint32_t n)
{
    uint64_t room = 0;

    for (uint32_t i = 0; i < n; i++)
        room += bufs[i].write ? bufs[i].len : 0;
    return room < UINT32_MAX ? (uint32_t)room : UINT32_MAX;
}

static uint16_t after(const struct vh_driver *d, uint16_t i)
{
    return i + 1u < d->num ? (uint16_t)(i + 1) : 0;
}

static void queue_up(struct vh_driver *d, uint16_t id)
{
    if (d->features & VH_F_IN_ORDER) {
        d->order[d->order_in] = id;
        d->order_in = after(d, d->order_in);
    }
    d->flight[id].seq = d->added++;
}

/* Queue a chain, readable buffers first; returns its id. The device sees it after vh_driver_publish(). */
int vh_driver_add(struct vh_driver *d, const struct vh_buf *bufs, uint32_t n)
{
    const struct ring_driver *kind = kinds[d->kind];
    bool indirect = d->tables && n > 1 && n <= d->table_len;
    uint32_t count = indirect ? 1 : n;
    uint16_t id;

    if (!n || count > d->num)
        return VH_D_TOO_BIG;
    if (d->n_free < count)
        return VH_D_FULL;
    id = kind->take_id(d, count);
    d->flight[id].room = room_of(bufs, n);
    d->flight[id].count = (uint16_t)count;
    d->n_free -= count;
    if (indirect) {
        uint64_t at = (uint64_t)id * d->table_len * DESC_SIZE;

        kind->fill(d, (char *)d->tables + at, bufs, n);
        kind->put(d, id, &(struct vh_buf){d->tables_gpa + at, n * DESC_SIZE, 0}, 1, DESC_INDIRECT);
    } else {
        kind->put(d, id, bufs, n, 0);
    }
    queue_up(d, id);
    return id;
}

/* Queue a chain once more that came back with `keep` set: its descriptors are where they were. */
void vh_driver_again(struct vh_driver *d, uint32_t id)
{
    kinds[d->kind]->put(d, (uint16_t)id, NULL, 0, 0);
    queue_up(d, (uint16_t)id);
}

/* Give up a chain that came back with `keep` set. */
void vh_driver_free(struct vh_driver *d, uint32_t id)
{
    d->n_free += d->flight[id].count;
    kinds[d->kind]->give_id(d, (uint16_t)id);
    d->flight[id].count = 0;
}

/* Show the device what was added. Returns 1 if it wants a kick. */
int vh_driver_publish(struct vh_driver *d)
{
    bool kick = kinds[d->kind]->show(d);

    d->shown = d->added;
    d->kicked_idx = d->avail_idx;
    return kick;
}

/* The next chain that came back: 1, none: 0, or an error. */
static int take(struct vh_driver *d, const struct ring_driver *kind, struct vh_used *used)
{
    if (!d->batch) {
        if (!kind->next(d, used))
            return 0;
        if (used->id >= d->num || d->flight[used->id].seq >= d->shown)
            return VH_D_BAD_USED;
        if (d->check && used->len > d->flight[used->id].room)
            return VH_D_BAD_LEN;
        if (!(d->features & VH_F_IN_ORDER))
            return 1;
        /* One element may stand for all up to the one it names (virtio 1.3, 2.7.9 and 2.8.7). */
        d->batch = 1;
        d->batch_end = *used;
    }
    used->id = d->order[d->order_out];
    used->len = d->flight[used->id].room;
    if (used->id == d->batch_end.id) {
        *used = d->batch_end;
        d->batch = 0;
    } else if (d->kind != VH_PACKED && (uint16_t)(d->last_used + 1) == d->used_seen) {
        return VH_D_BAD_USED; /* the used index does not go as far as the element */
    }
    d->order_out = after(d, d->order_out);
    return 1;
}

/* Take what the device returned, up to max. After an error the ring is of no use until it is set up anew. */
int vh_driver_poll(struct vh_driver *d, struct vh_used *out, uint32_t max)
{
    const struct ring_driver *kind = kinds[d->kind];
    uint32_t n;

    if (!kind->look(d))
        return VH_D_BAD_USED;
    for (n = 0; n < max; n++) {
        int got = take(d, kind, &out[n]);
        struct vh_flight *f;

        if (got < 0)
            return got;
        if (!got)
            break;
        f = &d->flight[out[n].id];
        f->seq = NOT_THERE;
        d->returned++;
        kind->pass(d, f->count);
        if (!d->keep)
            vh_driver_free(d, out[n].id);
    }
    return (int)n;
}

/* Ask for no calls; calls_on() asks for them again. */
void vh_driver_calls_off(struct vh_driver *d)
{
    kinds[d->kind]->calls_off(d);
}

/* Ask for a call at the next used element. Returns 1 if one is there already, for which no call may come. */
int vh_driver_calls_on(struct vh_driver *d)
{
    const struct ring_driver *kind = kinds[d->kind];
    struct vh_used used;

    kind->calls_on(d);
    fence();
    /* A device that ran ahead is found out by the next vh_driver_poll(). */
    return d->batch || !kind->look(d) || kind->next(d, &used);
}
