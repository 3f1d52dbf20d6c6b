/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * Tables of guest memory. A table is made in three steps, of which each is one call whatever its size: copy the
 * one before, put regions in or take them out, index it. From then on it does not change, and anybody may read.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"

enum { CACHE_LINE = 64 };
/* Entries of the index for a region, and at least: the more, the fewer regions share one. */
enum { ENTRIES_EACH = 2, ENTRIES_LEAST = 16 };

_Static_assert(sizeof(struct vh_region) == CACHE_LINE, "a region is a cache line");
_Static_assert(sizeof(struct vh_mem) == CACHE_LINE, "regions begin at a cache line");

static uint32_t entries(uint32_t room)
{
    uint32_t n = ENTRIES_LEAST;

    while (n < room * ENTRIES_EACH)
        n *= 2;
    return n;
}

static struct vh_mem *allocate(uint32_t room)
{
    size_t regions = sizeof(struct vh_mem) + room * sizeof(struct vh_region);
    size_t index = (entries(room) + 1) * sizeof(uint16_t);
    struct vh_mem *m = aligned_alloc(CACHE_LINE, (regions + index + CACHE_LINE - 1) & ~(size_t)(CACHE_LINE - 1));

    if (!m)
        return NULL;
    memset(m, 0, sizeof *m);
    m->index = (uint16_t *)((char *)m + regions);
    m->room = room;
    return m;
}

/* The table that was freed last: the next one is often as large, and the system's pages cost more than the copy. */
static _Atomic(struct vh_mem *) last;

static struct vh_mem *take_last(uint32_t room)
{
    struct vh_mem *m = atomic_exchange(&last, NULL);

    if (m && m->room >= room && m->room / 2 <= room)
        return m;
    free(m);
    return allocate(room + room / 8);
}

/* A table with the regions of another one (NULL: none) and room for more, to be indexed; NULL: no memory, or too
 * many. */
struct vh_mem *vh_mem_new(const struct vh_mem *from, uint32_t more)
{
    uint32_t n = from ? from->n : 0;

    if (more > UINT16_MAX || n + more > UINT16_MAX)
        return NULL;
    /* An empty table has a region too, of no bytes: look-ups need one to look at. */
    uint32_t room = n + more ? n + more : 1;
    struct vh_mem *m = take_last(room);

    if (!m)
        return NULL;
    memset(m->region, 0, sizeof *m->region);
    m->n = n;
    if (n)
        memcpy(m->region, from->region, n * sizeof *m->region);
    else
        vh_mem_index(m);
    return m;
}

void vh_mem_free(struct vh_mem *m)
{
    free(atomic_exchange(&last, m));
}

/* Position of the first region that starts behind an address. */
static uint32_t after(const struct vh_mem *m, uint64_t gpa)
{
    uint32_t low = 0, high = m->n;

    while (low < high) {
        uint32_t mid = low + (high - low) / 2;

        if (m->region[mid].gpa <= gpa)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* Position of a region that has one of these guest addresses, -1 without one. Sizes are not 0. */
static int32_t clash(const struct vh_mem *m, uint64_t gpa, uint64_t size)
{
    uint32_t at = after(m, gpa + (size - 1));

    if (!at)
        return -1;
    const struct vh_region *r = &m->region[at - 1];
    return r->gpa >= gpa || gpa - r->gpa < r->size ? (int32_t)at - 1 : -1;
}

/* The same for addresses of the front-end, which are in no order. */
static int32_t clash_user(const struct vh_mem *m, uint64_t uaddr, uint64_t size)
{
    for (uint32_t i = 0; i < m->n; i++) {
        const struct vh_region *r = &m->region[i];

        if (uaddr - r->uaddr < r->size || r->uaddr - uaddr < size)
            return (int32_t)i;
    }
    return -1;
}

/* Put a region in its place, which is returned, without a mapping yet. One that overlaps another region is not put
 * in: the result is VH_MEM_CLASH or VH_MEM_CLASH_USER less the other's position, or VH_MEM_FULL. */
int32_t vh_mem_put(struct vh_mem *m, uint64_t gpa, uint64_t size, uint64_t uaddr)
{
    int32_t other = clash(m, gpa, size);

    if (other >= 0)
        return VH_MEM_CLASH - other;
    other = clash_user(m, uaddr, size);
    if (other >= 0)
        return VH_MEM_CLASH_USER - other;
    if (m->n == m->room)
        return VH_MEM_FULL;

    uint32_t at = after(m, gpa);
    struct vh_region *r = &m->region[at];

    memmove(r + 1, r, (m->n - at) * sizeof *r);
    *r = (struct vh_region){.gpa = gpa, .size = size, .uaddr = uaddr, .log = gpa, .readable = 1};
    m->n++;
    return (int32_t)at;
}

/* Say how the region that starts at an address is mapped; returns its position. */
int32_t vh_mem_back(struct vh_mem *m, uint64_t gpa, uint64_t host, uint32_t guard, uint16_t domid, int writable)
{
    int32_t at = (int32_t)after(m, gpa) - 1;
    struct vh_region *r = &m->region[at];

    r->host = (uint8_t *)(uintptr_t)host;
    r->guard = guard;
    r->domid = domid;
    r->writable = writable != 0;
    return at;
}

/* Take the region with these numbers out; returns the position it had, -1: there is none. */
int32_t vh_mem_take(struct vh_mem *m, uint64_t gpa, uint64_t size, uint64_t uaddr)
{
    int32_t at = (int32_t)after(m, gpa) - 1;
    struct vh_region *r = &m->region[at];

    if (at < 0 || r->gpa != gpa || r->size != size || r->uaddr != uaddr)
        return -1;
    m->n--;
    memmove(r, r + 1, (m->n - (uint32_t)at) * sizeof *r);
    if (!m->n)
        memset(r, 0, sizeof *r);
    return at;
}

/* Make look-ups find what the table has now. */
void vh_mem_index(struct vh_mem *m)
{
    uint32_t most = entries(m->room), widest = 1, entry = 0, before = 0;

    m->first = m->n ? m->region[0].gpa : 0;
    m->span = m->n ? m->region[m->n - 1].gpa + (m->region[m->n - 1].size - 1) - m->first : 0;
    m->shift = 0;
    while (m->span >> m->shift >= most)
        m->shift++;
    m->index[0] = m->index[1] = 0;
    for (uint32_t i = 0; i < m->n; i++) {
        uint32_t last = (uint32_t)((m->region[i].gpa + (m->region[i].size - 1) - m->first) >> m->shift);

        /* No step of the index starts in or before a region that lies within one step with others. */
        if (entry > last && i + 1 < m->n)
            continue;
        if (i - before + 1 > widest)
            widest = i - before + 1;
        before = i;
        while (entry <= last)
            m->index[entry++] = (uint16_t)i;
        m->index[entry] = (uint16_t)i;
    }
    for (m->steps = 0; 1u << m->steps < widest; m->steps++)
        ;
}

/* Position of the region that holds an address, -1: none. */
int32_t vh_mem_where(const struct vh_mem *m, uint64_t gpa)
{
    const struct vh_region *r = vh_mem_find(m, gpa);

    return r ? (int32_t)(r - m->region) : -1;
}

/* Position of the region that holds a range of front-end addresses whole, -1: none. */
int32_t vh_mem_user(const struct vh_mem *m, uint64_t uaddr, uint64_t n)
{
    for (uint32_t i = 0; i < m->n; i++) {
        uint64_t at = uaddr - m->region[i].uaddr;

        if (at < m->region[i].size && n <= m->region[i].size - at)
            return (int32_t)i;
    }
    return -1;
}
