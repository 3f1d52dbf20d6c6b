/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * What the chains that are available lack of translations, so that all of it is asked for at once. Nothing is taken
 * and nothing is judged: a chain that breaks a rule is left to the walk that takes it.
 */
#include "core.h"

/* Descriptors and translations that are looked at: chains may share them, and so be as long as the driver likes. */
enum { LOOKS = 8192 };

struct list {
    const struct vh_queue *q;
    const struct vh_mem *mem;
    struct vh_lack *at;
    uint32_t n, max;
    uint32_t chain;
    uint32_t looks; /* so far */
};

static bool look(struct list *l)
{
    return l->looks < LOOKS && ++l->looks;
}

/* The buffer from its first address on that has no translation. Returns whether to look for more. */
static bool buffer(struct list *l, uint64_t addr, uint64_t len, bool write)
{
    while (len) {
        const struct vh_region *r = vh_mem_find(l->mem, addr);
        uint64_t take;

        if (!look(l))
            return false;
        if (!r || !(write ? r->writable : r->readable)) {
            l->at[l->n++] = (struct vh_lack){.addr = addr, .len = len, .chain = l->chain, .write = write};
            return l->n < l->max;
        }
        take = r->size - (addr - r->gpa);
        take = take < len ? take : len;
        addr += take;
        len -= take;
        if (addr < take) /* around the end of the address space */
            return true;
    }
    return true;
}

/* The buffers of an indirect table, or of the table what is not known of it. */
static bool table(struct list *l, uint64_t addr, uint32_t len)
{
    const struct vh_queue *q = l->q;
    uint32_t entries = len / DESC_SIZE, i = 0;
    uint32_t before = l->n;

    if (!(q->features & VH_F_INDIRECT) || !len || len % DESC_SIZE || entries > q->max_chain)
        return true;
    if (!buffer(l, addr, len, false))
        return false;
    if (l->n != before)
        return true;
    for (uint32_t seen = 0; seen < entries; seen++) {
        uint64_t at = addr + (uint64_t)i * DESC_SIZE;
        const struct vh_region *r = vh_mem_find(l->mem, at);
        struct desc d;

        if (!r || !r->readable || !r->host || r->size - (at - r->gpa) < DESC_SIZE)
            return true;
        d = q->kind == VH_PACKED ? load_packed_desc(r->host + (at - r->gpa), 0)
                                 : load_split_desc(r->host + (at - r->gpa), 0, q->kind == VH_SPLIT_BIG);
        if (d.flags & DESC_INDIRECT)
            return true;
        if (!look(l) || !buffer(l, d.addr, d.len, d.flags & DESC_WRITE))
            return false;
        if (q->kind == VH_PACKED) {
            i++;
        } else if (d.flags & DESC_NEXT && d.link < entries) {
            i = d.link;
        } else {
            return true;
        }
    }
    return true;
}

/* The chain from entry i of the ring on. *slots: how many entries it has. */
static bool chain(struct list *l, uint32_t i, uint32_t *slots)
{
    const struct vh_queue *q = l->q;
    bool room = true;

    *slots = 0;
    while (room && *slots < q->num) {
        struct desc d = q->kind == VH_PACKED ? load_packed_desc(q->desc, i)
                                             : load_split_desc(q->desc, i, q->kind == VH_SPLIT_BIG);

        ++*slots;
        if (!look(l))
            return false;
        room = d.flags & DESC_INDIRECT ? table(l, d.addr, d.len) : buffer(l, d.addr, d.len, d.flags & DESC_WRITE);
        if (!(d.flags & DESC_NEXT))
            break;
        if (q->kind == VH_PACKED)
            i = i + 1 == q->num ? 0 : i + 1;
        else if (d.link < q->num)
            i = d.link;
        else
            break;
    }
    return room;
}

static void split(struct list *l)
{
    const struct vh_queue *q = l->q;
    const struct avail *avail = q->avail;
    bool big = q->kind == VH_SPLIT_BIG;
    uint32_t ready = (uint16_t)(load16_acquire(&avail->idx, big) - q->next_avail), slots;

    for (; l->chain < ready && l->chain < q->num; l->chain++) {
        uint16_t head = load16(&avail->ring[(uint16_t)(q->next_avail + l->chain) & (q->num - 1)], big);

        if (head >= q->num || !chain(l, head, &slots))
            return;
    }
}

static void packed(struct list *l)
{
    const struct vh_queue *q = l->q;
    const struct packed_desc *ring = q->desc;
    uint32_t at = q->next_avail, seen = 0, slots;
    bool wrap = q->avail_wrap;

    while (seen < q->num && packed_is_avail(load16_acquire(&ring[at].flags, false), wrap)) {
        if (!chain(l, at, &slots))
            return;
        l->chain++;
        seen += slots;
        at += slots;
        if (at >= q->num) {
            at -= q->num;
            wrap = !wrap;
        }
    }
}

/* Up to max buffers of the chains that are available, those of the first one first. Returns how many. */
uint32_t vh_lacking(const struct vh_queue *q, const struct vh_mem *mem, struct vh_lack *at, uint32_t max)
{
    struct list l = {.q = q, .mem = mem, .at = at, .max = max};

    if (!max || q->inflight.given < q->inflight.n_again)
        return 0;
    if (q->kind == VH_PACKED)
        packed(&l);
    else
        split(&l);
    return l.n;
}
