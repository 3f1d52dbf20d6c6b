/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* The split virtqueue, device side: batches in, batches out (virtio 1.3, 2.7). */
#include <unistd.h>

#include "core.h"

/* Ends the ring: nothing more is popped until it is set up anew. */
static int broken(struct vh_queue *q, int bad)
{
    q->error = (uint8_t)-bad;
    return bad;
}

/* A file behind guest memory was truncated: what was read since is zeros that nobody wrote. */
static int check_guard(struct vh_queue *q)
{
    uint32_t hits = vh_guard_hits();

    if (hits == q->guard_hits)
        return 0;
    for (uint32_t i = 0; i < q->mem->n; i++) {
        const struct vh_region *r = &q->mem->region[i];

        if (r->guard && vh_guard_hit((int)r->guard))
            return vh_fail(q, VH_E_TRUNCATED, r->gpa, r->size);
    }
    q->guard_hits = hits;
    return 0;
}

/* Bring the deferred tables in front of the deferred buffers, in their order. */
static void tables_first(struct vh_batch *b)
{
    uint32_t tables = 0;

    for (uint32_t i = 0; i < b->n_defer && tables < b->n_tables; i++) {
        struct vh_defer d = b->defer[i];

        if (d.iov != UINT32_MAX)
            continue;
        b->defer[i] = b->defer[tables];
        b->defer[tables++] = d;
    }
}

/*
 * Take up to max chains. Returns their number; with b->n_tables > 0 they are complete only after vh_expand(), and
 * the tables are the first entries of b->defer.
 * A bad chain behind good ones is left for the next call, so that the good ones are served; a bad one in front
 * breaks the ring and returns -(enum vh_error).
 */
int vh_pop(struct vh_queue *q, struct vh_batch *b, uint32_t max)
{
    const struct avail *avail = q->avail;
    uint32_t mask = q->num - 1, n, i;
    uint16_t idx, ready;
    int bad = 0;

    b->n = b->n_iov = b->n_defer = b->n_tables = b->pending = 0;
    if (q->error)
        return -q->error;
    idx = load16_acquire(&avail->idx);
    ready = (uint16_t)(idx - q->next_avail);
    if (ready > q->num)
        return broken(q, vh_fail(q, VH_E_AVAIL_JUMP, idx, q->next_avail));
    n = ready < max ? ready : max;
    n = n < b->cap ? n : b->cap;
    for (i = 0; i < n; i++) {
        uint16_t head = load16(&avail->ring[(uint16_t)(q->next_avail + i) & mask]);

        b->chain[i] = (struct vh_chain){.head = head, .state = VH_POPPED};
        __builtin_prefetch((const char *)q->desc + (size_t)(head & mask) * DESC_SIZE);
    }
    for (i = 0; i < n; i++) {
        struct vh_chain *c = &b->chain[i];
        uint32_t iov = b->n_iov, deferred = b->n_defer, tables = b->n_tables;

        c->iov = iov;
        bad = c->head < q->num ? vh_walk(q, b, i, q->desc, q->num, c->head, false)
                               : vh_fail(q, VH_E_HEAD, c->head, q->num);
        if (bad) {
            b->n_iov = iov;
            b->n_defer = deferred;
            b->n_tables = tables;
            break;
        }
    }
    if (i || !bad)
        bad = check_guard(q);
    if (bad)
        return broken(q, bad);
    tables_first(b);
    b->n = b->pending = i;
    q->next_avail = (uint16_t)(q->next_avail + i);
    q->popped += i;
    return (int)i;
}

/* Bring the pieces of a chain to the end of iov[], where its table's pieces can follow them. */
static int move_to_end(struct vh_queue *q, struct vh_batch *b, uint32_t chain)
{
    struct vh_chain *c = &b->chain[chain];
    uint32_t n = c->n_read + c->n_write;

    if (b->cap_iov - b->n_iov < n)
        return vh_fail(q, VH_E_PIECES, c->head, b->cap_iov);
    for (uint32_t i = 0; i < n; i++)
        b->iov[b->n_iov + i] = b->iov[c->iov + i];
    for (uint32_t i = 0; i < b->n_defer; i++)
        if (b->defer[i].chain == chain && b->defer[i].iov != UINT32_MAX)
            b->defer[i].iov += b->n_iov - c->iov;
    c->iov = b->n_iov;
    b->n_iov += n;
    return 0;
}

/*
 * Walk the indirect tables that Python has mapped since vh_pop(); their entries leave b->defer, the buffers they
 * name join it. Returns as vh_pop() does; the chains behind a bad one go back to the ring.
 */
int vh_expand(struct vh_queue *q, struct vh_batch *b)
{
    uint32_t tables = b->n_tables, kept = 0, n = b->n;
    int bad = 0;

    for (uint32_t i = 0; i < tables && !bad; i++) {
        struct vh_defer want = b->defer[i];

        bad = want.host ? move_to_end(q, b, want.chain) : vh_fail(q, VH_E_UNMAPPED, want.gpa, want.len);
        if (!bad)
            bad = vh_walk(q, b, want.chain, want.host, want.len / DESC_SIZE, 0, true);
        if (bad)
            n = want.chain;
        else
            b->chain[want.chain].state = VH_POPPED;
    }
    if (bad && !n)
        return broken(q, bad);
    for (uint32_t i = 0; i < b->n_defer; i++)
        if (b->defer[i].iov != UINT32_MAX && b->defer[i].chain < n)
            b->defer[kept++] = b->defer[i];
    b->n_defer = kept;
    b->n_tables = 0;
    q->next_avail = (uint16_t)(q->next_avail - (b->n - n));
    q->popped -= b->n - n;
    b->n = b->pending = n;
    return (int)n;
}

/* Whether the driver wants to hear of the used elements published since the last time. */
static bool call_wanted(struct vh_queue *q)
{
    struct avail *avail = q->avail;
    uint16_t old = q->signalled;
    bool first = !q->signalled_valid;

    fence();
    if (!(q->features & VH_F_EVENT_IDX))
        return !(load16(&avail->flags) & AVAIL_NO_INTERRUPT);
    q->signalled = q->next_used;
    q->signalled_valid = 1;
    return first || event_passed(load16(used_event(avail, q->num)), q->next_used, old);
}

/* Return every VH_DONE chain of the batch to the driver: one index store, at most one notification. */
int vh_push(struct vh_queue *q, struct vh_batch *b)
{
    struct used *used = q->used;
    uint32_t mask = q->num - 1, n = 0;

    for (uint32_t i = 0; i < b->n; i++) {
        struct vh_chain *c = &b->chain[i];
        uint32_t slot = (uint16_t)(q->next_used + n) & mask;

        if (c->state != VH_DONE)
            continue;
        c->state = VH_PUSHED;
        used->ring[slot].id = htole32(c->head);
        used->ring[slot].len = htole32(c->written);
        n++;
    }
    if (!n)
        return 0;
    q->next_used = (uint16_t)(q->next_used + n);
    store16_release(&used->idx, q->next_used);
    b->pending -= n;
    q->pushed += n;
    if (!call_wanted(q))
        return 0;
    q->calls++;
    /* A full counter (EAGAIN) already means what we have to say; a driver that polls needs no call. */
    if (q->call_fd >= 0 && write(q->call_fd, &(uint64_t){1}, 8) < 0)
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

/* Stop asking for kicks while the ring is served; with event idx the old avail_event already does that. */
void vh_kicks_off(struct vh_queue *q)
{
    struct used *used = q->used;

    if (!(q->features & VH_F_EVENT_IDX))
        store16(&used->flags, USED_NO_NOTIFY);
}

/* Ask for kicks again. Returns 1 if chains came meanwhile, for which no kick may follow. */
int vh_kicks_on(struct vh_queue *q)
{
    struct used *used = q->used;

    if (q->features & VH_F_EVENT_IDX)
        store16(avail_event(used, q->num), q->next_avail);
    else
        store16(&used->flags, 0);
    fence();
    return vh_available(q);
}

int vh_available(const struct vh_queue *q)
{
    const struct avail *avail = q->avail;

    return load16_acquire(&avail->idx) != q->next_avail;
}
