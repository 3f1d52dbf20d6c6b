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

/* These change together, or who dies in between leaves a position that never was. */
union packed_place {
    struct {
        uint16_t used_idx;
        uint16_t old_used_idx;
        uint8_t used_wrap;
        uint8_t old_used_wrap;
        uint8_t pad[2];
    };
    uint64_t all;
};

struct packed_region {
    uint64_t features;
    uint16_t version;
    uint16_t desc_num;
    uint16_t free_head;
    uint16_t old_free_head;
    union packed_place place;
    uint64_t pad;
    struct packed_entry desc[];
};

_Static_assert(sizeof(union packed_place) == 8 && offsetof(struct packed_region, place) == 16, "packed positions");
_Static_assert(sizeof(struct split_region) == 16 && sizeof(struct split_entry) == 16, "split region");
_Static_assert(sizeof(struct packed_region) == 32 && sizeof(struct packed_entry) == 32, "packed region");

static union packed_place where(uint16_t used, bool wrap, uint16_t old_used, bool old_wrap)
{
    return (union packed_place){{used, old_used, wrap, old_wrap, {0, 0}}};
}

static void set_place(volatile struct packed_region *r, union packed_place place)
{
    in_program_order();
    __atomic_store_n(&r->place.all, place.all, __ATOMIC_RELAXED);
    in_program_order();
}

static uint64_t contents(uint32_t num, int packed)
{
    return packed ? sizeof(struct packed_region) + (uint64_t)num * sizeof(struct packed_entry)
                  : sizeof(struct split_region) + (uint64_t)num * sizeof(struct split_entry);
}

uint64_t vh_inflight_size(uint32_t num, int packed)
{
    return (contents(num, packed) + 63) & ~UINT64_C(63);
}

void vh_inflight_format(void *region, uint32_t num, int packed)
{
    /* What follows may be another ring's: not everybody pads. */
    memset(region, 0, contents(num, packed));
    if (packed) {
        struct packed_region *r = region;

        r->desc_num = (uint16_t)num;
        r->place = where(0, true, 0, true);
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

        /* Older chains may have been returned since it was taken. Entries on the free list are not in flight. */
        in->next[c->last] = in->free;
        r->desc[c->last].next = in->free;
        r->old_free_head = in->free = c->entry;
        r->free_head = c->entry;
        r->desc[c->entry].inflight = 0;
    } else {
        ((volatile struct split_region *)in->region)->desc[c->head].inflight = 0;
    }
    in->counter--;
}

/* Lay out again what was read of a chain then. */
void vh_inflight_again_packed(struct vh_queue *q, struct vh_chain *c, const struct vh_again *again)
{
    const volatile struct packed_region *r = q->inflight.region;
    struct packed_desc *table = q->inflight.table;
    uint16_t i = again->entry, n = again->slots;

    c->entry = i;
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
    if (q->kind == VH_PACKED)
        set_place(q->inflight.region, where(next_used, wrap, q->next_used, q->used_wrap));
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
        set_place(r, where(q->next_used, q->used_wrap, q->next_used, q->used_wrap));
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
    bool fresh = !r->version;

    if (fresh) {
        vh_inflight_format(in->region, q->num, 0);
        behind = 0;
    }
    /* The last batch was published, and maybe not struck off. More than a ring has: the driver began a new ring. */
    for (uint32_t n = 0; n < behind && behind <= q->num && i < q->num; n++, i = r->desc[i].next)
        r->desc[i].inflight = 0;
    in_program_order();
    r->used_idx = used;
    r->version = VERSION;
    in->last_batch = 0;
    for (i = 0; i < q->num; i++)
        if (r->desc[i].inflight)
            in->again[in->n_again++] = (struct vh_again){.counter = r->desc[i].counter, .entry = i, .slots = 1};
    if (!fresh)
        q->next_avail = (uint16_t)(used + in->n_again);
    return 0;
}

/* What the entries of a packed region are found to be. Every one is one of them, and only one. */
enum { UNKNOWN = 0, FREE = 1, TAKEN = 2 };

/* Follow the list of free entries, none of which is in flight; returns their number. */
static uint32_t find_free(struct vh_queue *q, uint8_t *what, uint16_t free)
{
    struct vh_inflight *in = &q->inflight;
    volatile struct packed_region *r = in->region;
    uint32_t n = 0;
    uint16_t i = free, last = 0;

    /* Some let the list's end lead back to where it began. */
    for (; i < q->num && what[i] == UNKNOWN; i = in->next[i]) {
        what[i] = FREE;
        r->desc[i].inflight = 0;
        last = i;
        n++;
    }
    if (n)
        in->next[last] = (uint16_t)q->num;
    in->free = n ? free : (uint16_t)q->num;
    return n;
}

/* Follow the entries of a chain; returns their number, 0 if they do not lead from its head to its last. */
static uint16_t find_chain(const struct vh_queue *q, uint8_t *what, uint16_t head, uint16_t num, uint16_t last)
{
    uint16_t i = head, end = head;

    for (uint16_t k = 0; k < num; k++, i = q->inflight.next[i]) {
        if (i >= q->num || what[i] != UNKNOWN)
            return 0;
        what[i] = TAKEN;
        end = i;
    }
    return end == last ? num : 0;
}

/*
 * A batch of used elements is published by the first of them. Where that did not happen the others are there all the
 * same, and would be taken for published as soon as a smaller batch is.
 */
static void withdraw(struct packed_desc *ring, uint32_t num, uint32_t used, bool wrap, uint32_t slots)
{
    for (uint32_t k = 1; k < slots; k++) {
        if (++used == num) {
            used = 0;
            wrap = !wrap;
        }
        if (packed_is_used(load16(&ring[used].flags, false), wrap))
            store16(&ring[used].flags, wrap ? DESC_AVAIL : DESC_USED, false);
    }
}

static int recover_packed(struct vh_queue *q)
{
    struct vh_inflight *in = &q->inflight;
    volatile struct packed_region *r = in->region;
    struct packed_desc *ring = q->desc;
    uint8_t *what = in->table;
    union packed_place place = {.all = __atomic_load_n(&r->place.all, __ATOMIC_RELAXED)};
    bool fresh = !r->version, wrap;
    uint32_t slots, known;
    uint16_t used, free;

    /* After the last batch of a lap in which all was used the ring looks new, and is where the region says. */
    if ((place.old_used_idx != q->next_used || (place.old_used_wrap & 1) != q->used_wrap) &&
        (place.used_idx != q->next_used || (place.used_wrap & 1) != q->used_wrap))
        fresh |= !q->next_used && q->used_wrap && vh_packed_is_new(q);
    if (fresh) {
        vh_inflight_format(in->region, q->num, 1);
        set_place(r, where(q->next_used, q->used_wrap, q->next_used, q->used_wrap));
        r->version = VERSION;
    }
    place.all = __atomic_load_n(&r->place.all, __ATOMIC_RELAXED);
    used = place.old_used_idx;
    wrap = place.old_used_wrap & 1;
    free = r->old_free_head;
    if ((place.used_idx != used || (place.used_wrap & 1) != wrap) && used < q->num &&
        !packed_is_avail(load16_acquire(&ring[used].flags, false), wrap)) {
        /* The driver has the last batch. */
        used = place.used_idx;
        wrap = place.used_wrap & 1;
        free = r->free_head;
    }
    if (used >= q->num)
        return vh_fail(q, VH_E_INFLIGHT, used, q->num);
    memset(what, UNKNOWN, q->num);
    for (uint32_t i = 0; i < q->num; i++)
        in->next[i] = r->desc[i].next;
    known = find_free(q, what, free);
    slots = 0;
    for (uint16_t i = 0; i < q->num; i++) {
        uint16_t n;

        if (!r->desc[i].inflight)
            continue;
        n = find_chain(q, what, i, r->desc[i].num, r->desc[i].last);
        slots += n;
        if (!n)
            return vh_fail(q, VH_E_INFLIGHT, i, q->num);
        in->again[in->n_again++] = (struct vh_again){.counter = r->desc[i].counter, .entry = i, .slots = n};
    }
    /* Entries that are neither would be missing when as many chains are in flight as the ring holds. */
    if (known + slots != q->num)
        return vh_fail(q, VH_E_INFLIGHT, known + slots, q->num);
    withdraw(ring, q->num, used, wrap, slots);
    if (!fresh) {
        uint32_t next = used + slots;

        q->next_used = used;
        q->used_wrap = wrap;
        q->avail_wrap = next >= q->num ? !wrap : wrap;
        q->next_avail = (uint16_t)(next >= q->num ? next - q->num : next);
    }
    r->old_free_head = free;
    set_place(r, where(used, wrap, used, wrap));
    r->free_head = free;
    return 0;
}

/*
 * Find out what is in flight, and go on behind it. What the front-end says of the ring's indexes counts for a new
 * region, or a ring begun anew, only: it does not know how far a process came that was killed.
 */
int vh_inflight_recover(struct vh_queue *q)
{
    int bad;

    q->inflight.n_again = q->inflight.given = 0;
    bad = q->kind == VH_PACKED ? recover_packed(q) : recover_split(q);
    in_their_order(q);
    return bad;
}
