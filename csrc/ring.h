/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * What is in the memory of a ring, split (virtio 1.3, 2.7) and packed (2.8), and how both sides touch it.
 *
 * The other side may write to shared memory at any moment. Every value of its is loaded once, into a local, and only
 * the local is checked and used. Indexes and the flags of packed descriptors carry acquire and release; everything
 * else is ordered by them.
 */
#ifndef VHOST_RING_H
#define VHOST_RING_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4, DESC_AVAIL = 1 << 7, DESC_USED = 1 << 15 };
enum { AVAIL_NO_INTERRUPT = 1, USED_NO_NOTIFY = 1 };
enum { EVENT_ENABLE = 0, EVENT_DISABLE = 1, EVENT_DESC = 2 };
enum { DESC_SIZE = 16, WRAP = 1 << 15 };

/* A descriptor in host order, whichever ring it is from: `link` is next in a split ring and the id in a packed one. */
struct desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t link;
};

struct avail {
    uint16_t flags;
    uint16_t idx;
    uint16_t ring[]; /* used_event follows the last entry */
};

struct used_elem {
    uint32_t id;
    uint32_t len;
};

struct used {
    uint16_t flags;
    uint16_t idx;
    struct used_elem ring[]; /* avail_event follows the last entry */
};

struct packed_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t id;
    uint16_t flags;
};

struct packed_event {
    uint16_t off_wrap; /* a position, and in bit 15 the wrap counter there */
    uint16_t flags;
};

/* Rings are little-endian but for those of legacy drivers on big-endian machines. */
static inline uint16_t order16(uint16_t v, bool big)
{
    return big ? htobe16(v) : htole16(v);
}

static inline uint32_t order32(uint32_t v, bool big)
{
    return big ? htobe32(v) : htole32(v);
}

static inline uint16_t load16(const uint16_t *p, bool big)
{
    return order16(__atomic_load_n(p, __ATOMIC_RELAXED), big);
}

static inline void store16(uint16_t *p, uint16_t v, bool big)
{
    __atomic_store_n(p, order16(v, big), __ATOMIC_RELAXED);
}

static inline uint16_t load16_acquire(const uint16_t *p, bool big)
{
    return order16(__atomic_load_n(p, __ATOMIC_ACQUIRE), big);
}

static inline void store16_release(uint16_t *p, uint16_t v, bool big)
{
    __atomic_store_n(p, order16(v, big), __ATOMIC_RELEASE);
}

/* Orders our store to one index before our load of the other side's: both sides do it, so one sees the other. */
static inline void fence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* A half of a descriptor. Indirect tables need no alignment, so neither do these loads. */
struct half {
    uint64_t v;
} __attribute__((packed, may_alias));

static inline struct desc load_split_desc(const void *table, uint32_t i, bool big)
{
    const volatile struct half *h = (const volatile struct half *)((const char *)table + (size_t)i * DESC_SIZE);
    uint64_t addr = h[0].v, rest = h[1].v;

    if (big) {
        addr = be64toh(addr);
        rest = be64toh(rest);
        return (struct desc){addr, (uint32_t)(rest >> 32), (uint16_t)(rest >> 16), (uint16_t)rest};
    }
    addr = le64toh(addr);
    rest = le64toh(rest);
    return (struct desc){addr, (uint32_t)rest, (uint16_t)(rest >> 32), (uint16_t)(rest >> 48)};
}

static inline struct desc load_packed_desc(const void *table, uint32_t i)
{
    const volatile struct half *h = (const volatile struct half *)((const char *)table + (size_t)i * DESC_SIZE);
    uint64_t addr = le64toh(h[0].v), rest = le64toh(h[1].v);

    return (struct desc){addr, (uint32_t)rest, (uint16_t)(rest >> 48), (uint16_t)(rest >> 32)};
}

/* Whether an event index asked to hear of the step from old to new (virtio 1.3, 2.7.7.2). */
static inline bool event_passed(uint16_t event, uint16_t new, uint16_t old)
{
    return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
}

/*
 * The same for a packed ring of num entries (2.8.10): `wrap` is the counter that belongs to new; a step back or none
 * is once around.
 */
static inline bool packed_event_passed(uint16_t off_wrap, uint16_t new, bool wrap, uint16_t old, uint32_t num)
{
    uint16_t event = off_wrap & (WRAP - 1);

    if (new <= old)
        old = (uint16_t)(old - num);
    if (wrap != !!(off_wrap & WRAP))
        event = (uint16_t)(event - num);
    return event_passed(event, new, old);
}

/* What the flags of a packed descriptor say of who has it, given the wrap counter (virtio 1.3, 2.8.1). */
static inline bool packed_is_avail(uint16_t flags, bool wrap)
{
    return !!(flags & DESC_AVAIL) == wrap && !!(flags & DESC_USED) != wrap;
}

static inline bool packed_is_used(uint16_t flags, bool wrap)
{
    return !!(flags & DESC_AVAIL) == wrap && !!(flags & DESC_USED) == wrap;
}

static inline uint16_t *used_event(struct avail *avail, uint32_t num)
{
    return &avail->ring[num];
}

static inline uint16_t *avail_event(struct used *used, uint32_t num)
{
    return (uint16_t *)&used->ring[num];
}

#endif
