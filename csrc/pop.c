/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Taking chains from a ring: a batch at a time, those first that were in flight when somebody else served it. */
#include "walk.h"

static const struct vh_region nowhere; /* what a walk starts from without memory */

/* Ends the ring: nothing more is popped until it is set up anew. A miss is no fault. */
static int broken(struct vh_queue *q, int bad)
{
    if (bad != -VH_E_MISS)
        q->error = (uint8_t)-bad;
    return bad;
}

/* A file behind guest memory was truncated: what was read since is zeros that nobody wrote. */
static int check_guard(struct vh_queue *q, const struct vh_mem *mem)
{
    uint32_t hits = vh_guard_hits();

    if (likely(hits == q->guard_hits))
        return 0;
    for (uint32_t i = 0; i < mem->n; i++) {
        const struct vh_region *r = &mem->region[i];

        if (r->guard && vh_guard_hit((int)r->guard))
            return vh_fail(q, VH_E_TRUNCATED, r->gpa, r->size);
    }
    q->guard_hits = hits;
    return 0;
}

/* The table to walk with. Whoever swaps in another one sees in `held` that this one is still looked at. */
static const struct vh_mem *hold(struct vh_queue *q)
{
    const struct vh_mem *mem, *again = __atomic_load_n(&q->mem, __ATOMIC_ACQUIRE);

    do {
        mem = again;
        __atomic_store_n(&q->held, mem, __ATOMIC_RELEASE);
        fence();
        again = __atomic_load_n(&q->mem, __ATOMIC_ACQUIRE);
    } while (mem != again);
    return mem;
}

/* Walk with another table from now on, whoever is walking. The one that is returned, if any, is to be kept. */
const struct vh_mem *vh_queue_swap(struct vh_queue *q, const struct vh_mem *mem)
{
    __atomic_store_n(&q->mem, mem, __ATOMIC_RELEASE);
    fence();
    return __atomic_load_n(&q->held, __ATOMIC_ACQUIRE);
}

static void let_go(struct vh_queue *q)
{
    __atomic_store_n(&q->held, NULL, __ATOMIC_RELEASE);
}

/* Whether nothing of a packed ring was ever used: its driver has made some of it available at most. */
bool vh_packed_is_new(const struct vh_queue *q)
{
    const struct packed_desc *ring = q->desc;

    for (uint32_t i = 0; i < q->num; i++)
        if (load16_acquire(&ring[i].flags, false) & DESC_USED)
            return false;
    return true;
}

/*
 * Some front-ends begin packed rings with 0, which says that a first lap is over and all of it used. In such a ring
 * some flags have USED set: where the first used element of that lap was written, it or what the driver has made
 * available there since, in its second lap. So one that looks new is new.
 */
static void begin_at_zero(struct vh_queue *q)
{
    if (!q->next_avail && !q->next_used && !q->avail_wrap && !q->used_wrap && vh_packed_is_new(q))
        q->avail_wrap = q->used_wrap = true;
}

int vh_queue_init(struct vh_queue *q)
{
    if (q->kind == VH_PACKED)
        begin_at_zero(q);
    else
        q->next_used = load16_acquire(&((const struct used *)q->used)->idx, q->kind == VH_SPLIT_BIG);
    return q->inflight.region ? vh_inflight_recover(q) : 0;
}

static struct walk begin(struct vh_queue *q, struct vh_batch *b)
{
    const struct vh_mem *mem = hold(q);

    return (struct walk){q, b, mem, mem->n ? mem->region : &nowhere, b->n_iov};
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

static inline void advance(struct vh_queue *q, uint16_t slots)
{
    uint32_t next = (uint32_t)q->next_avail + slots;

    if (next >= q->num) {
        next -= q->num;
        q->avail_wrap = !q->avail_wrap;
    }
    q->next_avail = (uint16_t)next;
}

static inline void retreat(struct vh_queue *q, uint16_t slots)
{
    if (q->next_avail < slots) {
        q->next_avail = (uint16_t)(q->next_avail + q->num);
        q->avail_wrap = !q->avail_wrap;
    }
    q->next_avail = (uint16_t)(q->next_avail - slots);
}

static inline void take_turn(struct vh_queue *q, struct vh_chain *c)
{
    if (q->features & VH_F_IN_ORDER) {
        c->turn = q->turn_taken++;
        q->turns[c->turn & (q->num_turns - 1)].done = 0;
    }
}

/* Undo what a chain that could not be walked has left in the batch. */
struct mark {
    uint32_t defer, tables;
};

static inline struct mark mark(const struct vh_batch *b)
{
    return (struct mark){b->n_defer, b->n_tables};
}

static void rewind_to(struct vh_batch *b, struct mark m)
{
    b->n_defer = m.defer;
    b->n_tables = m.tables;
}

static always_inline int take_split(struct walk *w, uint32_t max, bool big)
{
    struct vh_queue *q = w->q;
    struct vh_batch *b = w->b;
    const struct avail *avail = q->avail;
    uint32_t mask = q->num - 1, n, i;
    uint16_t idx = load16_acquire(&avail->idx, big);
    uint32_t ready = (uint16_t)(idx - q->next_avail);
    int bad = 0;

    if (ready > q->num - q->taken)
        return vh_fail(q, VH_E_AVAIL_JUMP, idx, q->next_avail);
    n = ready < max ? ready : max;
    for (i = 0; i < n; i++) {
        uint16_t head = load16(&avail->ring[(uint16_t)(q->next_avail + i) & mask], big);

        b->chain[i] = (struct vh_chain){.head = head, .slots = 1, .state = VH_POPPED};
        __builtin_prefetch((const char *)q->desc + (size_t)(head & mask) * DESC_SIZE);
    }
    for (i = 0; i < n; i++) {
        struct vh_chain *c = &b->chain[i];
        struct mark m = mark(b);

        c->iov = b->n_iov;
        bad = likely(c->head < q->num)
                  ? walk_chain(w, i, c, q->desc, q->num, c->head, false, big ? VH_SPLIT_BIG : VH_SPLIT)
                  : vh_fail(q, VH_E_HEAD, c->head, q->num);
        if (unlikely(bad)) {
            rewind_to(b, m);
            break;
        }
        c->slots = 1;
        b->n_iov = w->n_iov;
        if (q->inflight.region)
            vh_inflight_taken_split(q, c->head);
        take_turn(q, c);
    }
    q->next_avail = (uint16_t)(q->next_avail + i);
    q->taken += i;
    return i ? (int)i : bad;
}

static always_inline int take_packed(struct walk *w, uint32_t max)
{
    struct vh_queue *q = w->q;
    struct vh_batch *b = w->b;
    const struct packed_desc *ring = q->desc;
    uint32_t i;
    int bad = 0;

    for (i = 0; i < max; i++) {
        uint32_t first = q->next_avail;
        struct vh_chain *c = &b->chain[i];
        struct mark m = mark(b);

        if (!packed_is_avail(load16_acquire(&ring[first].flags, false), q->avail_wrap))
            break;
        __builtin_prefetch(&ring[first + 8 < q->num ? first + 8 : 0]);
        *c = (struct vh_chain){.iov = b->n_iov, .head = (uint16_t)first, .state = VH_POPPED};
        bad = walk_chain(w, i, c, ring, q->num, first, false, VH_PACKED);
        if (likely(!bad) && unlikely((uint32_t)c->slots > q->num - q->taken))
            bad = vh_fail(q, VH_E_AVAIL_JUMP, q->taken + c->slots, q->num);
        if (unlikely(bad)) {
            rewind_to(b, m);
            break;
        }
        b->n_iov = w->n_iov;
        if (q->inflight.region)
            vh_inflight_taken_packed(q, c);
        take_turn(q, c);
        advance(q, c->slots);
        q->taken += c->slots;
    }
    return i ? (int)i : bad;
}

/* Chains that were in flight before: the oldest first. They are recorded already. */
static int take_again(struct walk *w, uint32_t max)
{
    struct vh_queue *q = w->q;
    struct vh_batch *b = w->b;
    uint32_t left = q->inflight.n_again - q->inflight.given, n = left < max ? left : max, i;
    int bad = 0;

    for (i = 0; i < n; i++) {
        const struct vh_again *again = &q->inflight.again[q->inflight.given + i];
        uint16_t entry = again->entry;
        struct vh_chain *c = &b->chain[i];
        struct mark m = mark(b);

        *c = (struct vh_chain){.iov = b->n_iov, .head = entry, .slots = 1, .state = VH_POPPED};
        if (q->kind == VH_PACKED) {
            vh_inflight_again_packed(q, c, again);
            bad = walk_chain(w, i, c, q->inflight.table, again->slots, 0, false, VH_PACKED);
            c->slots = again->slots;
        } else if (q->kind == VH_SPLIT) {
            bad = walk_chain(w, i, c, q->desc, q->num, entry, false, VH_SPLIT);
        } else {
            bad = walk_chain(w, i, c, q->desc, q->num, entry, false, VH_SPLIT_BIG);
        }
        if (bad) {
            rewind_to(b, m);
            break;
        }
        if (q->kind != VH_PACKED)
            c->slots = 1;
        b->n_iov = w->n_iov;
        take_turn(q, c);
        q->taken += c->slots;
    }
    q->inflight.given += i;
    return i ? (int)i : bad;
}

/*
 * Take up to max chains. Returns their number; with b->n_tables > 0 they are complete only after vh_expand(), and
 * the tables are the first entries of b->defer.
 * A bad chain behind good ones is left for the next call, so that the good ones are served; a bad one in front
 * breaks the ring and returns -(enum vh_error). So does a missing translation, which breaks nothing.
 */
int vh_pop(struct vh_queue *q, struct vh_batch *b, uint32_t max)
{
    struct walk w;
    int n, bad;

    b->n = b->n_iov = b->n_defer = b->n_tables = b->pending = 0;
    if (q->error)
        return -q->error;
    max = max < b->cap ? max : b->cap;
    w = begin(q, b);
    b->again = q->inflight.given < q->inflight.n_again;
    if (unlikely(b->again))
        n = take_again(&w, max);
    else if (q->kind == VH_SPLIT)
        n = take_split(&w, max, false);
    else if (q->kind == VH_PACKED)
        n = take_packed(&w, max);
    else
        n = take_split(&w, max, true);
    bad = n < 0 ? n : check_guard(q, w.mem);
    let_go(q);
    if (bad) {
        b->n_iov = b->n_defer = b->n_tables = 0;
        return broken(q, bad);
    }
    tables_first(b);
    b->n = b->pending = (uint32_t)n;
    q->popped += (uint32_t)n;
    return n;
}

/* Put back the chains from `first` on, of which nothing has come yet and which are the newest that were taken. */
void vh_put_back(struct vh_queue *q, struct vh_batch *b, uint32_t first)
{
    for (uint32_t i = b->n; i-- > first;) {
        const struct vh_chain *c = &b->chain[i];

        q->taken -= c->slots;
        q->popped--;
        if (q->features & VH_F_IN_ORDER)
            q->turn_taken--;
        if (b->again) {
            q->inflight.given--;
            continue;
        }
        if (q->kind == VH_PACKED)
            retreat(q, c->slots);
        else
            q->next_avail--;
        if (q->inflight.region)
            vh_inflight_untaken(q, c);
    }
    b->pending -= b->n - first;
    b->n = first;
}

void vh_unpop(struct vh_queue *q, struct vh_batch *b)
{
    vh_put_back(q, b, 0);
}

/* Bring the pieces of a chain to the end of iov[], where its table's pieces can follow them. */
static int move_to_end(struct vh_queue *q, struct vh_batch *b, uint32_t chain)
{
    struct vh_chain *c = &b->chain[chain];
    uint32_t n = c->n_read + c->n_write;

    if (b->cap_iov - b->n_iov < n)
        return vh_fail(q, VH_E_PIECES, c->head, b->cap_iov);
    for (uint32_t i = 0; i < n; i++) {
        b->iov[b->n_iov + i] = b->iov[c->iov + i];
        b->log[b->n_iov + i] = b->log[c->iov + i];
    }
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
    struct walk w = begin(q, b);
    int bad = 0;

    for (uint32_t i = 0; i < tables && !bad; i++) {
        struct vh_defer want = b->defer[i];
        struct vh_chain *c = &b->chain[want.chain];
        uint32_t entries = want.len / DESC_SIZE;

        bad = want.host ? move_to_end(q, b, want.chain) : vh_fail(q, VH_E_UNMAPPED, want.gpa, want.len);
        w.n_iov = b->n_iov;
        if (!bad && q->kind == VH_PACKED)
            bad = walk_chain(&w, want.chain, c, want.host, entries, 0, true, VH_PACKED);
        else if (!bad)
            bad = q->kind == VH_SPLIT ? walk_chain(&w, want.chain, c, want.host, entries, 0, true, VH_SPLIT)
                                      : walk_chain(&w, want.chain, c, want.host, entries, 0, true, VH_SPLIT_BIG);
        b->n_iov = w.n_iov;
        if (bad)
            n = want.chain;
        else
            c->state = VH_POPPED;
    }
    let_go(q);
    if (bad && !n)
        return broken(q, bad);
    for (uint32_t i = 0; i < b->n_defer; i++)
        if (b->defer[i].iov != UINT32_MAX && b->defer[i].chain < n)
            b->defer[kept++] = b->defer[i];
    b->n_defer = kept;
    b->n_tables = 0;
    vh_put_back(q, b, n);
    return (int)n;
}
