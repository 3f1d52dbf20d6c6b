/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Returning chains to the driver: a batch at a time, seen at once, with at most one notification. */
#include <errno.h>
#include <unistd.h>

#include "core.h"

/* Used elements that are written and not published yet. */
struct run {
    uint32_t n;     /* chains */
    uint32_t slots; /* split: the same; packed: entries of the ring */
    uint16_t next;  /* where the next element goes */
    bool wrap;
    bool any;
    uint16_t first; /* packed: the flags of the first, which publish them all */
};

static struct run begin(const struct vh_queue *q)
{
    return (struct run){.next = q->next_used, .wrap = q->used_wrap};
}

static void put_split(struct vh_queue *q, struct run *run, uint16_t id, uint32_t len, uint32_t slots, bool big)
{
    struct used *used = q->used;
    struct used_elem *elem = &used->ring[run->next & (q->num - 1)];

    elem->id = order32(id, big);
    elem->len = order32(len, big);
    if (q->features & VH_F_LOG_USED)
        vh_log_range(q->log, q->log_used + (uint64_t)((char *)elem - (char *)used), sizeof(*elem));
    run->next = (uint16_t)(run->next + slots);
}

static void put_packed(struct vh_queue *q, struct run *run, uint16_t id, uint32_t len, uint32_t slots)
{
    struct packed_desc *desc = (struct packed_desc *)q->desc + run->next;
    uint16_t flags = (uint16_t)((run->wrap ? DESC_AVAIL | DESC_USED : 0) | (len ? DESC_WRITE : 0));
    uint32_t next = run->next + slots;

    desc->id = htole16(id);
    desc->len = htole32(len);
    if (run->any)
        store16(&desc->flags, flags, false);
    else
        run->first = flags;
    run->any = true;
    if (q->features & VH_F_LOG_USED)
        vh_log_range(q->log, q->log_desc + (uint64_t)run->next * DESC_SIZE, DESC_SIZE);
    if (next >= q->num) {
        next -= q->num;
        run->wrap = !run->wrap;
    }
    run->next = (uint16_t)next;
}

static inline void put(struct vh_queue *q, struct run *run, uint16_t id, uint32_t len, uint32_t slots)
{
    if (q->kind == VH_PACKED)
        put_packed(q, run, id, len, slots);
    else
        put_split(q, run, id, len, slots, q->kind == VH_SPLIT_BIG);
    run->slots += slots;
}

static void publish(struct vh_queue *q, const struct run *run)
{
    struct used *used = q->used;
    uint16_t at = q->next_used;

    if (q->inflight.region)
        vh_inflight_publishing(q, run->next, run->wrap);
    q->next_used = run->next;
    q->used_wrap = run->wrap;
    if (q->kind == VH_PACKED) {
        store16_release(&((struct packed_desc *)q->desc)[at].flags, run->first, false);
        /* Marked before its flags were there, the page may have been copied without them. */
        if (q->features & VH_F_LOG_USED)
            vh_log_range(q->log, q->log_desc + (uint64_t)at * DESC_SIZE, DESC_SIZE);
    } else {
        store16_release(&used->idx, q->next_used, q->kind == VH_SPLIT_BIG);
        if (q->features & VH_F_LOG_USED)
            vh_log_range(q->log, q->log_used + offsetof(struct used, idx), sizeof(used->idx));
    }
    q->taken -= run->slots;
    q->pushed += run->n;
}

/* The chains of a batch in the batch's order. */
static struct run put_batch(struct vh_queue *q, struct vh_batch *b)
{
    struct run run = begin(q);

    for (uint32_t i = 0; i < b->n; i++) {
        struct vh_chain *c = &b->chain[i];

        if (c->state != VH_DONE)
            continue;
        if (q->inflight.region)
            vh_inflight_using(q, c->head, c->entry, c->last);
        if (q->features & VH_F_LOG_DATA)
            vh_log_chain(q->log, b, c);
        put(q, &run, c->head, c->written, c->slots);
        run.n++;
        /* Those that are recorded stay as they are until they are published. */
        if (!q->inflight.region)
            c->state = VH_PUSHED;
    }
    if (run.n)
        publish(q, &run);
    if (run.n && q->inflight.region) {
        for (uint32_t i = 0; i < b->n; i++) {
            if (b->chain[i].state != VH_DONE)
                continue;
            vh_inflight_used(q, b->chain[i].head, b->chain[i].entry);
            b->chain[i].state = VH_PUSHED;
        }
        vh_inflight_published(q);
    }
    return run;
}

static struct vh_turn *turn_of(const struct vh_queue *q, uint16_t turn)
{
    return &q->turns[turn & (q->num_turns - 1)];
}

/* IN_ORDER: chains wait until those before them are done; one element serves for many (virtio 1.3, 2.7.9, 2.8.9). */
static struct run put_in_order(struct vh_queue *q, struct vh_batch *b)
{
    struct run run = begin(q);
    uint16_t first = q->turn_used, end;
    uint32_t skipped = 0;

    for (uint32_t i = 0; i < b->n; i++) {
        struct vh_chain *c = &b->chain[i];

        if (c->state != VH_DONE)
            continue;
        if (q->features & VH_F_LOG_DATA)
            vh_log_chain(q->log, b, c);
        *turn_of(q, c->turn) = (struct vh_turn){.written = c->written, .head = c->head, .slots = c->slots,
                                                .entry = c->entry, .last = c->last, .done = 1,
                                                .whole = c->written == c->write_len};
        c->state = VH_PUSHED;
        b->pending--;
    }
    for (end = first; end != q->turn_taken && turn_of(q, end)->done; end++) {
        const struct vh_turn *turn = turn_of(q, end);
        bool more = (uint16_t)(end + 1) != q->turn_taken && turn_of(q, (uint16_t)(end + 1))->done;

        if (q->inflight.region)
            vh_inflight_using(q, turn->head, turn->entry, turn->last);
        skipped += turn->slots;
        run.n++;
        /* The driver takes those without an element of their own as written whole. */
        if (more && turn->whole)
            continue;
        put(q, &run, turn->head, turn->written, skipped);
        skipped = 0;
    }
    if (!run.n)
        return run;
    publish(q, &run);
    q->turn_used = end;
    if (q->inflight.region) {
        for (uint16_t i = first; i != end; i++)
            vh_inflight_used(q, turn_of(q, i)->head, turn_of(q, i)->entry);
        vh_inflight_published(q);
    }
    return run;
}

/* To look costs as much as the call itself, so an eventfd is not looked at: if the driver has made it block, and it is
 * full, this waits until somebody reads it. */
static int call(const struct vh_queue *q)
{
    if (unlikely(q->call_checked))
        return vh_notify(q->call_fd);
    return write(q->call_fd, &(uint64_t){1}, 8) < 0 ? -errno : 0;
}

/* Return every VH_DONE chain of the batch to the driver: seen at once, at most one notification. */
int vh_push(struct vh_queue *q, struct vh_batch *b)
{
    bool in_order = q->features & VH_F_IN_ORDER;
    struct run run = in_order ? put_in_order(q, b) : put_batch(q, b);

    if (!in_order)
        b->pending -= run.n;
    if (q->features & (VH_F_LOG_DATA | VH_F_LOG_USED) && run.n)
        vh_log_tell(q->log);
    if (!run.n || !vh_call_wanted(q))
        return 0;
    q->calls++;
    /* A full counter (EAGAIN) already means what we have to say; a driver that polls needs no call. */
    if (q->call_fd >= 0 && call(q) < 0)
        q->call_errors++;
    return 1;
}

/* Chains that are still with the device. */
uint32_t vh_batch_left(const struct vh_batch *b)
{
    uint32_t left = 0;

    for (uint32_t i = 0; i < b->n; i++)
        left += b->chain[i].state == VH_POPPED;
    return left;
}
