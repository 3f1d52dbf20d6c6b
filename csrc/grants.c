/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * Deferred pieces whose addresses are grant references (Linux, drivers/xen/grant-dma-ops.c): bit 63, the first
 * reference in the bits from 12 on, and the offset in its page. Says which are copied and which are mapped, and
 * fills the arrays of the calls; the calls themselves are Python's, one of each kind for a batch.
 */
#include <string.h>

#include "core.h"

enum { PAGE = 4096, PACKED = 1024, SOURCE_GRANT = 1, DEST_GRANT = 2, NOT_DONE = 1 };

#define GRANT_BIT (UINT64_C(1) << 63)

_Static_assert(sizeof(struct vh_copy) == 24 && offsetof(struct vh_copy, len) == 16 &&
                   offsetof(struct vh_copy_grant, domid) == 6,
               "vh_copy is handed to libxengnttab");

static uint64_t pages(const struct vh_defer *d)
{
    return (d->gpa % PAGE + d->len + PAGE - 1) / PAGE;
}

static uint64_t first_ref(const struct vh_defer *d)
{
    return (d->gpa & ~GRANT_BIT) / PAGE;
}

/*
 * Where a copied piece goes in our memory, from `at` on; the caller moves on to its end. Large ones lie in their
 * pages as they do in the guest's, so that no copy crosses a page on one side only; small ones are packed.
 */
static uint64_t bounce_place(const struct vh_defer *d, uint64_t at)
{
    if (d->len > PACKED)
        return at + (d->gpa - at) % PAGE;
    at = (at + 15) & ~UINT64_C(15);
    return at % PAGE + d->len > PAGE ? (at / PAGE + 1) * PAGE : at;
}

static void copy_direction(struct vh_defer *d, uint32_t n, bool write)
{
    for (uint32_t i = 0; i < n; i++)
        if (d[i].how == VH_MAP && d[i].write == write)
            d[i].how = VH_COPY;
}

/* Decide about each piece and count what the calls will need. Returns 0, or -1 - i: piece i has no references. */
int vh_grants_plan(struct vh_defer *d, uint32_t n, struct vh_grants *g)
{
    uint64_t mapped[2] = {0, 0};

    g->bounce = g->segments = g->pages[0] = g->pages[1] = 0;
    g->mixed = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (first_ref(&d[i]) + pages(&d[i]) > UINT64_C(1) << 32)
            return -1 - (int)i;
        if (d[i].how == VH_MAP && d[i].len <= g->each)
            d[i].how = VH_COPY;
        if (d[i].how == VH_MAP)
            mapped[d[i].write] += d[i].len;
    }
    /* A mapping has one protection. To need one call only, the direction with less in it is copied. */
    if (mapped[0] && mapped[1]) {
        bool less = mapped[1] < mapped[0];

        if (mapped[less] <= g->all)
            copy_direction(d, n, less);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (d[i].how == VH_MAP) {
            g->pages[d[i].write] += pages(&d[i]);
        } else if (d[i].how == VH_COPY) {
            g->bounce = bounce_place(&d[i], g->bounce) + d[i].len;
            g->segments += d[i].write ? 0 : pages(&d[i]);
        }
        g->mixed |= d[i].domid != d[0].domid;
    }
    return 0;
}

/* The references of the pieces to be mapped in one direction, and the domain of each. */
void vh_grants_refs(const struct vh_defer *d, uint32_t n, int write, uint32_t *refs, uint32_t *domids)
{
    for (uint32_t i = 0; i < n; i++) {
        if (d[i].how != VH_MAP || d[i].write != write)
            continue;
        for (uint64_t k = 0; k < pages(&d[i]); k++) {
            *refs++ = (uint32_t)(first_ref(&d[i]) + k);
            *domids++ = d[i].domid;
        }
    }
}

/* The same pieces are mapped now, one behind the other from `base` on. */
void vh_grants_mapped(struct vh_defer *d, uint32_t n, int write, void *base)
{
    char *at = base;

    for (uint32_t i = 0; i < n; i++) {
        if (d[i].how != VH_MAP || d[i].write != write)
            continue;
        d[i].host = at + d[i].gpa % PAGE;
        at += pages(&d[i]) * PAGE;
    }
}

/* One copy for each page of a piece, not done yet whatever becomes of the call; with `segments` NULL counts only. */
static uint64_t copies(const struct vh_defer *d, uint32_t len, struct vh_copy *segments)
{
    uint64_t n = 0;

    for (uint32_t done = 0; done < len; n++) {
        uint64_t at = d->gpa + done;
        uint32_t room = PAGE - at % PAGE, take = room < len - done ? room : len - done;
        union vh_copy_end guest = {.grant = {(uint32_t)((at & ~GRANT_BIT) / PAGE), at % PAGE, d->domid}};
        union vh_copy_end ours = {.virt = (char *)d->host + done};

        if (segments)
            segments[n] = (struct vh_copy){.source = d->write ? ours : guest,
                                           .dest = d->write ? guest : ours,
                                           .len = (uint16_t)take,
                                           .flags = d->write ? DEST_GRANT : SOURCE_GRANT,
                                           .status = NOT_DONE};
        done += take;
    }
    return n;
}

/*
 * Give the copied pieces their place in `bounce`, which begins a page; describe the copies from the guest. What the
 * device is to write begins as zeros: no guest gets what was another's, whatever the device leaves out.
 */
void vh_grants_fetch(struct vh_defer *d, uint32_t n, void *bounce, struct vh_copy *segments)
{
    uint64_t at = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (d[i].how != VH_COPY)
            continue;
        at = bounce_place(&d[i], at);
        d[i].host = (char *)bounce + at;
        at += d[i].len;
        if (d[i].write)
            memset(d[i].host, 0, d[i].len);
        else
            segments += copies(&d[i], d[i].len, segments);
    }
}

/* Cut each piece to what the device wrote in it. Returns the number of copies to the guest. */
uint64_t vh_grants_written(struct vh_batch *b)
{
    uint64_t segments = 0;

    for (uint32_t i = 0; i < b->n_defer; i++) {
        struct vh_defer *d = &b->defer[i];
        uint64_t written = b->chain[d->chain].written;

        if (d->how != VH_COPY || !d->write)
            continue;
        written = written < d->at ? 0 : written - d->at;
        d->len = written < d->len ? (uint32_t)written : d->len;
        segments += copies(d, d->len, NULL);
    }
    return segments;
}

void vh_grants_store(const struct vh_defer *d, uint32_t n, struct vh_copy *segments)
{
    for (uint32_t i = 0; i < n; i++)
        if (d[i].how == VH_COPY && d[i].write)
            segments += copies(&d[i], d[i].len, segments);
}

/* After the copies: mark the pieces that did not arrive. With `segments` NULL, none did. */
void vh_grants_stored(struct vh_defer *d, uint32_t n, const struct vh_copy *segments)
{
    for (uint32_t i = 0; i < n; i++) {
        uint64_t count;

        if (d[i].how != VH_COPY || !d[i].write)
            continue;
        count = copies(&d[i], d[i].len, NULL);
        for (uint64_t k = 0; k < count; k++)
            if (!segments || segments[k].status)
                d[i].how = VH_LOST;
        if (segments)
            segments += count;
    }
}

/* The driver does not get back the chains of such pieces. Returns their number. */
uint32_t vh_grants_lose(struct vh_batch *b)
{
    uint32_t lost = 0;

    for (uint32_t i = 0; i < b->n_defer; i++) {
        struct vh_chain *c = &b->chain[b->defer[i].chain];

        if (b->defer[i].how != VH_LOST || c->state != VH_DONE)
            continue;
        c->state = VH_OPEN;
        lost++;
    }
    return lost;
}

/* The keys of the pieces of more than `above` bytes that are to be mapped, and which they are. Returns their number. */
uint32_t vh_grants_keys(const struct vh_defer *d, uint32_t n, uint64_t above, struct vh_key *keys, uint32_t *which)
{
    uint32_t found = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (d[i].how != VH_MAP || d[i].len <= above || first_ref(&d[i]) > UINT32_MAX)
            continue;
        keys[found] = (struct vh_key){(uint32_t)first_ref(&d[i]), (uint32_t)pages(&d[i]), d[i].domid, d[i].write, 0};
        which[found++] = i;
    }
    return found;
}

/* Of those, the pieces whose first page is at pages[] already; 0: it is not. */
void vh_grants_kept(struct vh_defer *d, uint32_t n, const uint32_t *which, const uint64_t *pages)
{
    for (uint32_t i = 0; i < n; i++) {
        struct vh_defer *piece = &d[which[i]];

        if (!pages[i])
            continue;
        piece->host = (char *)(uintptr_t)pages[i] + piece->gpa % PAGE;
        piece->how = VH_KEPT;
    }
}

/* Put the addresses where the device looks for them. */
void vh_batch_place(struct vh_batch *b)
{
    for (uint32_t i = 0; i < b->n_defer; i++)
        b->iov[b->defer[i].iov].base = b->defer[i].host;
}
