/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * From a descriptor chain to pieces of host memory: bounds, order, loops, indirect tables (virtio 1.3, 2.7.5, 2.8.5).
 *
 * Inlined for each kind of ring, which is a constant then.
 */
#ifndef VHOST_WALK_H
#define VHOST_WALK_H

#include "core.h"

#define always_inline inline __attribute__((always_inline))

/* A batch in the making. */
struct walk {
    struct vh_queue *q;
    struct vh_batch *b;
    const struct vh_mem *mem;
    const struct vh_region *hint; /* where the last piece was */
    uint32_t n_iov;
};

struct parts {
    uint32_t n_read, n_write;
    uint64_t read_len, write_len;
};

int vh_add_slowly(struct walk *w, uint32_t chain, struct parts *p, uint64_t gpa, uint32_t len, bool write);
int vh_miss(struct vh_queue *q, uint64_t addr, uint64_t len, bool write);
const void *vh_table(struct walk *w, uint32_t chain, uint64_t gpa, uint32_t len, int *bad);

static always_inline void add_piece(struct walk *w, struct parts *p, const struct vh_region *r, uint64_t off, uint32_t len,
                                    bool write)
{
    w->b->iov[w->n_iov] = (struct vh_iov){r->host ? r->host + off : NULL, len};
    w->b->log[w->n_iov] = r->log + off;
    w->n_iov++;
    if (write) {
        p->n_write++;
        p->write_len += len;
    } else {
        p->n_read++;
        p->read_len += len;
    }
}

/* Append the pieces of one buffer to the chain; a buffer may cross from one region into the next. */
static always_inline int add_buffer(struct walk *w, uint32_t chain, struct parts *p, uint64_t gpa, uint32_t len,
                                    bool write)
{
    const struct vh_region *r = w->hint;
    struct parts copy;
    int bad;

    if (unlikely(gpa - r->gpa >= r->size)) {
        r = vh_mem_find(w->mem, gpa);
        if (likely(r != NULL))
            w->hint = r;
    }
    if (likely(r && len && len <= r->size - (gpa - r->gpa) && r->host && (write ? r->writable : r->readable) &&
               w->n_iov < w->b->cap_iov)) {
        add_piece(w, p, r, gpa - r->gpa, len, write);
        return 0;
    }
    copy = *p; /* so that p stays in registers */
    bad = vh_add_slowly(w, chain, &copy, gpa, len, write);
    *p = copy;
    return bad;
}

/*
 * Walk the chain that begins with entry i of a ring or, if inside, of an indirect table. c->head says what errors
 * call it; a table that is not mapped leaves the chain VH_OPEN. Returns 0 or -(enum vh_error), with q->info filled in
 * and the ring not yet marked.
 */
static always_inline int walk_chain(struct walk *w, uint32_t chain, struct vh_chain *c, const void *table,
                                    uint32_t entries, uint32_t i, bool inside, enum vh_kind kind)
{
    struct vh_queue *q = w->q;
    struct parts p = {c->n_read, c->n_write, c->read_len, c->write_len};
    uint32_t seen = 0, descs = c->descs;
    bool write_seen = c->write_seen;
    int bad;

    for (;;) {
        struct desc d = kind == VH_PACKED ? load_packed_desc(table, i) : load_split_desc(table, i, kind == VH_SPLIT_BIG);
        bool write = d.flags & DESC_WRITE;

        /* Recorded for a later process is what was read, not what is there then. */
        if (kind == VH_PACKED && !inside && q->inflight.region)
            ((struct desc *)q->inflight.table)[seen < entries ? seen : 0] = d;
        /* No chain visits a table's entry twice, so more steps than entries are a loop. */
        if (unlikely(++seen > entries))
            return vh_fail(q, VH_E_LOOP, c->head, seen);
        if (unlikely(d.flags & DESC_INDIRECT)) {
            if (inside)
                return vh_fail(q, VH_E_NESTED, c->head, i);
            if (!(q->features & VH_F_INDIRECT))
                return vh_fail(q, VH_E_NO_INDIRECT, c->head, i);
            if (d.flags & DESC_NEXT)
                return vh_fail(q, VH_E_INDIRECT_NEXT, c->head, i);
            if (!d.len || d.len % DESC_SIZE || d.len / DESC_SIZE > UINT16_MAX)
                return vh_fail(q, VH_E_INDIRECT_LEN, c->head, d.len);
            c->slots = (uint16_t)seen;
            if (kind == VH_PACKED)
                c->head = d.link;
            table = vh_table(w, chain, d.addr, d.len, &bad);
            if (bad)
                return bad;
            if (!table) {
                c->state = VH_OPEN;
                break;
            }
            entries = d.len / DESC_SIZE;
            i = seen = 0;
            inside = true;
            continue;
        }
        if (unlikely(descs++ >= q->max_chain))
            return vh_fail(q, VH_E_CHAIN, c->head, q->max_chain);
        if (unlikely(!write && write_seen))
            return vh_fail(q, VH_E_ORDER, c->head, i);
        write_seen |= write;
        bad = add_buffer(w, chain, &p, d.addr, d.len, write);
        if (unlikely(bad))
            return bad;
        if (kind == VH_PACKED && inside) {
            /* All entries of a table are the chain; NEXT means nothing in it (2.8.7). */
            if (++i == entries)
                break;
        } else if (!(d.flags & DESC_NEXT)) {
            if (!inside) {
                c->slots = (uint16_t)seen;
                if (kind == VH_PACKED)
                    c->head = d.link;
            }
            break;
        } else if (kind == VH_PACKED) {
            i = i + 1 == entries ? 0 : i + 1;
        } else {
            if (unlikely(d.link >= entries))
                return vh_fail(q, VH_E_NEXT, d.link, entries);
            i = d.link;
        }
    }
    c->n_read = p.n_read;
    c->n_write = p.n_write;
    c->read_len = p.read_len;
    c->write_len = p.write_len;
    c->descs = descs;
    c->write_seen = write_seen;
    return 0;
}

#endif
