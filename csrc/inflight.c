/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * What is in flight, recorded in memory that outlives this process (vhost-user, "Inflight I/O tracking").
 *
 * The steps and their order are the specification's: whatever the last one was when a process died, the next process
 * finds out which chains the driver has got back. The front-end could write to the region at any time, so it is read
 * when a ring starts only, and checked; from then on it is written, from our own account of it.
 */
#include <stdlib.h>
#include <string.h>

#include "core.h"

enum { VERSION = 1 };

struct split_entry {
    uint8_t inflight;
    uint8_t pad[5];
    uint16_t next;
    uint64_t counter;
};

struct split_region {
    uint64_t features;
    uint16_t version;
    uint16_t desc_num;
    uint16_t last_batch_head;
    uint16_t used_idx;
    struct split_entry desc[];
};

struct packed_entry {
    uint8_t inflight;
    uint8_t pad;
    uint16_t next;
    uint16_t last;
    uint16_t num;
    uint64_t counter;
    uint16_t id;
    uint16_t flags;
    uint32_t len;
    uint64_t addr;
};

struct packed_region {
    uint64_t features;
    uint16_t version;
    uint16_t desc_num;
    uint16_t free_head;
    uint16_t old_free_head;
    uint16_t used_idx;
    uint16_t old_used_idx;
    uint8_t used_wrap;
    uint8_t old_used_wrap;
    uint8_t pad[7];
    struct packed_entry desc[];
};

_Static_assert(sizeof(struct split_region) == 16 && sizeof(struct split_entry) == 16, "split region");
_Static_assert(sizeof(struct packed_region) == 32 && sizeof(struct packed_entry) == 32, "packed region");

uint64_t vh_inflight_size(uint32_t num, int packed)
{
    uint64_t size = packed ? sizeof(struct packed_region) + (uint64_t)num * sizeof(struct packed_entry)
                           : sizeof(struct split_region) + (uint64_t)num * sizeof(struct split_entry);

    return (size + 63) & ~UINT64_C(63);
}

void vh_inflight_format(void *region, uint32_t num, int packed)
{
    memset(region, 0, vh_inflight_size(num, packed));
    if (packed) {
        struct packed_region *r = region;

        r->desc_num = (uint16_t)num;
        r->used_wrap = r->old_used_wrap = 1;
        for (uint32_t i = 0; i < num; i++)
            r->desc[i].next = (uint16_t)(i + 1);
    } else {
        ((struct split_region *)region)->desc_num = (uint16_t)num;
    }
}

/* ---- taking ------------------------------------------------------------------------------------------------- */

void vh_inflight_taken_split(struct vh_queue *q, uint16_t head)
{
    volatile struct split_entry *e = &((struct split_region *)q->inflight.region)->desc[head];

    e->counter = q->inflight.counter++;
    e->inflight = 1;
}

/* What was read of the chain is in q->inflight.table. */
void vh_inflight_taken_packed(struct vh_queue *q, struct vh_chain *c)
{
    struct vh_inflight *in = &q->inflight;
    volatile struct packed_region *r = in->region;
    const struct desc *d = in->table;
    volatile struct packed_entry *head = &r->desc[in->free];

    c->entry = in->free;
    head->num = 0;
    head->counter = in->counter++;
    head->inflight = 1;
    for (uint32_t i = 0; i < c->slots; i++) {
        volatile struct packed_entry *e = &r->desc[in->free];

        c->last = in->free;
        if (i + 1 == c->slots)
            head->last = in->free;
        head->num = (uint16_t)(i + 1);
        e->addr = d[i].addr;
        e->len = d[i].len;
        e->flags = d[i].flags;
        e->id = d[i].link;
        in->free = in->next[in->free];
        r->free_head = in->free;
    }
    r->old_free_head = in->free;
}

void vh_inflight_untaken(struct vh_queue *q, const struct vh_chain *c)
{
    struct vh_inflight *in = &q->inflight;

    if (q->kind == VH_PACKED) {
        volatile struct packed_region *r = in->region;

        /* The list of free entries is as it was before: this chain was the newest. */
        r->desc[c->entry].inflight = 0;
        r->free_head = r->old_free_head = in->free = c->entry;
    } else {
        ((volatile struct split_region *)in->region)->desc[c->head].inflight = 0;
    }
    in->counter--;
}

/* Lay out again what was read of a chain then. */
void vh_inflight_again_packed(struct vh_queue *q, struct vh_chain *c, uint16_t entry)
{
    const volatile struct packed_region *r = q->inflight.region;
    struct packed_desc *table = q->inflight.table;
    uint16_t i = entry, n = q->inflight.again[q->inflight.given].slots;

    c->entry = entry;
    c->slots = n;
    for (uint16_t k = 0; k < n; k++, i = q->inflight.next[i]) {
        const volatile struct packed_entry *e = &r->desc[i];

        table[k] = (struct packed_desc){htole64(e->addr), htole32(e->len), htole16(e->id), htole16(e->flags)};
        c->last = i;
    }
}

/* ---- returning ---------------------------------------------------------------------------------------------- */

void vh_inflight_using(struct vh_queue *q, uint16_t head, uint16_t entry, uint16_t last)
{
    struct vh_inflight *in = &q->inflight;

    if (q->kind == VH_PACKED) {
        volatile struct packed_region *r = in->region;

        in->next[last] = in->free;
        r->desc[last].next = in->free;
        in->free = entry;
        r->free_head = entry;
    } else {
        volatile struct split_region *r = in->region;

        r->desc[head].next = in->last_batch;
        in->last_batch = head;
        r->last_batch_head = head;
    }
}

void vh_inflight_publishing(struct vh_queue *q, uint16_t next_used, bool wrap)
{
    if (q->kind == VH_PACKED) {
        volatile struct packed_region *r = q->inflight.region;

        r->used_idx = next_used;
        r->used_wrap = wrap;
    }
    in_program_order();
}

void vh_inflight_used(struct vh_queue *q, uint16_t head, uint16_t entry)
{
    in_program_order();
    if (q->kind == VH_PACKED)
        ((volatile struct packed_region *)q->inflight.region)->desc[entry].inflight = 0;
    else
        ((volatile struct split_region *)q->inflight.region)->desc[head].inflight = 0;
}

void vh_inflight_published(struct vh_queue *q)
{
    if (q->kind == VH_PACKED) {
        volatile struct packed_region *r = q->inflight.region;

        r->old_free_head = q->inflight.free;
        r->old_used_idx = q->next_used;
        r->old_used_wrap = q->used_wrap;
    } else {
        ((volatile struct split_region *)q->inflight.region)->used_idx = q->next_used;
    }
}

/* ---- after a crash ------------------------------------------------------------------------------------------ */

static int older(const void *a, const void *b)
{
    const struct vh_again *x = a, *y = b;

    return (x->counter > y->counter) - (x->counter < y->counter);
}

static void in_their_order(struct vh_queue *q)
{
    struct vh_inflight *in = &q->inflight;

    qsort(in->again, in->n_again, sizeof(in->again[0]), older);
    in->counter = in->n_again ? in->again[in->n_again - 1].counter + 1 : 0;
}

static int recover_split(struct vh_queue *q)
{
    struct vh_inflight *in = &q->inflight;
    volatile struct split_region *r = in->region;
    uint16_t used = q->next_used, behind = (uint16_t)(used - r->used_idx), i = r->last_batch_head;

    if (!r->version) {
        vh_inflight_format(in->region, q->num, 0);
        behind = 0;
    }
    /* The last batch was published, and maybe not struck off. More than a ring has: the driver began a new ring. */
    for (uint32_t n = 0; n < behind && behind <= q->num && i < q->num; n++, i = r->desc[i].next)
        r->desc[i].inflight = 0;
    r->used_idx = used;
    in_program_order();
    r->version = VERSION;
    in->last_batch = 0;
    for (i = 0; i < q->num; i++)
        if (r->desc[i].inflight)
            in->again[in->n_again++] = (struct vh_again){.counter = r->desc[i].counter, .entry = i, .slots = 1};
    if (in->n_again)
        q->next_avail = (uint16_t)(used + in->n_again);
    return 0;
}

/* Follow the entries of a chain; returns their number, 0 if they do not lead from its head to its last. */
static uint16_t chain_of(const struct vh_queue *q, uint16_t head, uint16_t num, uint16_t last)
{
    uint16_t i = head;

    for (uint16_t k = 1; k < num; k++) {
        i = q->inflight.next[i];
        if (i >= q->num)
            return 0;
    }
    return num <= q->num && i == last ? num : 0;
}

/* Whether nothing of a ring was ever used: what the driver made available from its start, and zeroes behind that. */
static bool begun_anew(const struct vh_queue *q)
{
    const struct packed_desc *ring = q->desc;
    uint16_t flags = 0;
    uint32_t i = 0;

    if (q->next_used || !q->used_wrap)
        return false;
    while (i < q->num && packed_is_avail(flags = load16_acquire(&ring[i].flags, false), true))
        i++;
    for (; i < q->num; i++)
        if (load16_acquire(&ring[i].flags, false) & (DESC_AVAIL | DESC_USED))
            return false;
    return true;
}

static int recover_packed(struct vh_queue *q)
{
    struct vh_inflight *in = &q->inflight;
    volatile struct packed_region *r = in->region;
    const struct packed_desc *ring = q->desc;
    uint32_t slots = 0, steps = 0;
    uint16_t used, free;
    bool wrap;

    if (!r->version || ((r->old_used_idx != q->next_used || r->old_used_wrap != q->used_wrap) && begun_anew(q))) {
        vh_inflight_format(in->region, q->num, 1);
        r->used_idx = r->old_used_idx = q->next_used;
        r->used_wrap = r->old_used_wrap = q->used_wrap;
        in_program_order();
        r->version = VERSION;
    }
    used = r->old_used_idx;
    wrap = r->old_used_wrap & 1;
    free = r->old_free_head;
    if ((r->used_idx != used || (r->used_wrap & 1) != wrap) && used < q->num &&
        !packed_is_avail(load16_acquire(&ring[used].flags, false), wrap)) {
        /* The driver has the last batch. */
        used = r->used_idx;
        wrap = r->used_wrap & 1;
        free = r->free_head;
    }
    if (used >= q->num)
        return vh_fail(q, VH_E_INFLIGHT, used, q->num);
    for (uint32_t i = 0; i < q->num; i++)
        in->next[i] = r->desc[i].next;
    for (uint16_t i = free; i < q->num; i = in->next[i]) {
        if (++steps > q->num)
            return vh_fail(q, VH_E_INFLIGHT, i, q->num);
        r->desc[i].inflight = 0;
    }
    for (uint16_t i = 0; i < q->num; i++) {
        uint16_t n, last = r->desc[i].last;

        if (!r->desc[i].inflight)
            continue;
        n = chain_of(q, i, r->desc[i].num, last);
        slots += n;
        if (!n || slots > q->num)
            return vh_fail(q, VH_E_INFLIGHT, i, q->num);
        in->again[in->n_again++] = (struct vh_again){.counter = r->desc[i].counter, .entry = i, .slots = n};
    }
    in->free = free;
    q->next_used = used;
    q->used_wrap = wrap;
    q->avail_wrap = used + slots >= q->num ? !wrap : wrap;
    q->next_avail = (uint16_t)(used + slots >= q->num ? used + slots - q->num : used + slots);
    r->free_head = r->old_free_head = free;
    r->used_idx = r->old_used_idx = q->next_used;
    r->used_wrap = r->old_used_wrap = q->used_wrap;
    return 0;
}

/*
 * Find out what is in flight, and go on behind it. Of a packed ring the region knows the indexes too: a front-end whose
 * back-end has died cannot know them, for they are not in the ring.
 */
int vh_inflight_recover(struct vh_queue *q)
{
    int bad;

    q->inflight.n_again = q->inflight.given = 0;
    bad = q->kind == VH_PACKED ? recover_packed(q) : recover_split(q);
    in_their_order(q);
    return bad;
}
