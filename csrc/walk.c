/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* What a walk seldom needs: buffers across regions, memory that is mapped for its use, and everything that is wrong. */
#include <string.h>

#include "walk.h"

int vh_fail(struct vh_queue *q, enum vh_error error, uint64_t a, uint64_t b)
{
    q->info[0] = a;
    q->info[1] = b;
    return -(int)error;
}

int vh_miss(struct vh_queue *q, uint64_t addr, uint64_t len, bool write)
{
    q->miss = write ? 2 : 1;
    return vh_fail(q, VH_E_MISS, addr, len);
}

static int defer(struct vh_queue *q, struct vh_batch *b, const struct vh_defer *want)
{
    if (b->n_defer == b->cap_defer)
        return vh_fail(q, VH_E_PIECES, want->gpa, b->cap_defer);
    b->defer[b->n_defer++] = *want;
    return 0;
}

int vh_add_slowly(struct walk *w, uint32_t chain, struct parts *p, uint64_t gpa, uint32_t len, bool write)
{
    struct vh_queue *q = w->q;
    struct vh_batch *b = w->b;
    uint32_t left = len;

    while (left) {
        uint64_t at = gpa + (len - left), off;
        const struct vh_region *r = at < gpa ? NULL : vh_mem_find(w->mem, at);
        uint32_t take;

        if (!r || !(write ? r->writable : r->readable)) {
            if (q->features & VH_F_TRANSLATED && at >= gpa)
                return vh_miss(q, at, left, write);
            return vh_fail(q, r && write ? VH_E_READONLY : VH_E_UNMAPPED, gpa, len);
        }
        if (w->n_iov == b->cap_iov)
            return vh_fail(q, VH_E_PIECES, gpa, b->cap_iov);
        off = at - r->gpa;
        take = r->size - off < left ? (uint32_t)(r->size - off) : left;
        if (!r->host) {
            int bad = defer(q, b,
                            &(struct vh_defer){.gpa = at, .at = write ? p->write_len : p->read_len, .len = take,
                                               .chain = chain, .iov = w->n_iov, .domid = r->domid, .write = write});

            if (bad)
                return bad;
        }
        add_piece(w, p, r, off, take, write);
        left -= take;
    }
    return 0;
}

/* A table that crosses region borders, copied together. */
static const void *collect(struct walk *w, uint64_t gpa, uint32_t len, int *bad)
{
    struct vh_queue *q = w->q;
    uint32_t done = 0;

    if (len / DESC_SIZE > q->max_chain) {
        *bad = vh_fail(q, VH_E_INDIRECT_LEN, gpa, len);
        return NULL;
    }
    while (done < len) {
        uint64_t at = gpa + done, off;
        const struct vh_region *r = at < gpa ? NULL : vh_mem_find(w->mem, at);
        uint32_t take;

        if (!r || !r->readable || !r->host) {
            *bad = q->features & VH_F_TRANSLATED && at >= gpa && !(r && r->readable)
                       ? vh_miss(q, at, len - done, false)
                       : vh_fail(q, VH_E_UNMAPPED, gpa, len);
            return NULL;
        }
        off = at - r->gpa;
        take = r->size - off < len - done ? (uint32_t)(r->size - off) : len - done;
        memcpy((char *)q->scratch + done, r->host + off, take);
        done += take;
    }
    return q->scratch;
}

/* Where an indirect table can be read. NULL: it is left for vh_expand(), or *bad says why not. */
const void *vh_table(struct walk *w, uint32_t chain, uint64_t gpa, uint32_t len, int *bad)
{
    const struct vh_region *r = vh_mem_find(w->mem, gpa);

    *bad = 0;
    if (!r || !r->readable || !r->host || len > r->size - (gpa - r->gpa)) {
        if (!r || r->host || len > r->size - (gpa - r->gpa))
            return collect(w, gpa, len, bad);
        w->b->n_tables++;
        *bad = defer(w->q, w->b,
                     &(struct vh_defer){.gpa = gpa, .len = len, .chain = chain, .iov = UINT32_MAX, .domid = r->domid});
        return NULL;
    }
    return r->host + (gpa - r->gpa);
}
