/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* From a descriptor chain to pieces of host memory: bounds, order, loops, indirect tables (virtio 1.3, 2.7.5). */
#include "core.h"

int vh_fail(struct vh_queue *q, enum vh_error error, uint64_t a, uint64_t b)
{
    q->info[0] = a;
    q->info[1] = b;
    return -(int)error;
}

static int defer(struct vh_queue *q, struct vh_batch *b, const struct vh_defer *want)
{
    if (b->n_defer == b->cap_iov)
        return vh_fail(q, VH_E_PIECES, b->chain[want->chain].head, b->cap_iov);
    b->defer[b->n_defer++] = *want;
    return 0;
}

/* Append the pieces of one buffer to the chain; a buffer may cross from one region into the next. */
static int add_buffer(struct vh_queue *q, struct vh_batch *b, uint32_t chain, uint64_t gpa, uint32_t len, bool write)
{
    struct vh_chain *c = &b->chain[chain];
    uint32_t left = len;

    while (left) {
        uint64_t at = gpa + (len - left);
        const struct vh_region *r = at < gpa ? NULL : vh_mem_find(q->mem, at);
        uint32_t take;

        if (!r)
            return vh_fail(q, VH_E_UNMAPPED, gpa, len);
        if (write && !r->writable)
            return vh_fail(q, VH_E_READONLY, gpa, len);
        if (b->n_iov == b->cap_iov)
            return vh_fail(q, VH_E_PIECES, c->head, b->cap_iov);
        take = r->size - (at - r->gpa) < left ? (uint32_t)(r->size - (at - r->gpa)) : left;
        if (!r->host) {
            uint64_t before = write ? c->write_len : c->read_len;
            int bad = defer(q, b, &(struct vh_defer){.gpa = at, .at = before, .len = take, .chain = chain,
                                                     .iov = b->n_iov, .domid = r->domid, .write = write});

            if (bad)
                return bad;
        }
        b->iov[b->n_iov++] = (struct vh_iov){r->host ? r->host + (at - r->gpa) : NULL, take};
        (*(write ? &c->n_write : &c->n_read))++;
        *(write ? &c->write_len : &c->read_len) += take;
        left -= take;
    }
    return 0;
}

/* An indirect table: walked at once where it is mapped whole in one piece, else left for vh_expand(). */
static int enter_table(struct vh_queue *q, struct vh_batch *b, uint32_t chain, const struct desc *d)
{
    const struct vh_region *r = vh_mem_find(q->mem, d->addr);

    if (!r || d->len > r->size - (d->addr - r->gpa))
        return vh_fail(q, VH_E_UNMAPPED, d->addr, d->len);
    if (r->host)
        return vh_walk(q, b, chain, r->host + (d->addr - r->gpa), d->len / DESC_SIZE, 0, true);
    b->chain[chain].state = VH_OPEN;
    b->n_tables++;
    return defer(q, b, &(struct vh_defer){.gpa = d->addr, .len = d->len, .chain = chain, .iov = UINT32_MAX,
                                          .domid = r->domid});
}

int vh_walk(struct vh_queue *q, struct vh_batch *b, uint32_t chain, const void *table, uint32_t entries,
            uint32_t first, bool indirect)
{
    struct vh_chain *c = &b->chain[chain];
    uint32_t i = first, seen = 0;

    for (;;) {
        struct desc d = load_desc(table, i);
        bool write = d.flags & DESC_WRITE;
        int bad;

        /* No chain visits a table's entry twice, so more steps than entries are a loop. */
        if (++seen > entries)
            return vh_fail(q, VH_E_LOOP, c->head, seen);
        if (d.flags & DESC_INDIRECT) {
            if (indirect)
                return vh_fail(q, VH_E_NESTED, c->head, i);
            if (!(q->features & VH_F_INDIRECT))
                return vh_fail(q, VH_E_NO_INDIRECT, c->head, i);
            if (d.flags & DESC_NEXT)
                return vh_fail(q, VH_E_INDIRECT_NEXT, c->head, i);
            if (!d.len || d.len % DESC_SIZE || d.len / DESC_SIZE > UINT16_MAX)
                return vh_fail(q, VH_E_INDIRECT_LEN, c->head, d.len);
            return enter_table(q, b, chain, &d);
        }
        if (c->descs++ >= q->max_chain)
            return vh_fail(q, VH_E_CHAIN, c->head, q->max_chain);
        if (!write && c->write_seen)
            return vh_fail(q, VH_E_ORDER, c->head, i);
        c->write_seen |= write;
        bad = add_buffer(q, b, chain, d.addr, d.len, write);
        if (bad)
            return bad;
        if (!(d.flags & DESC_NEXT))
            return 0;
        if (d.next >= entries)
            return vh_fail(q, VH_E_NEXT, d.next, entries);
        i = d.next;
    }
}
