/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * What the C sources share: the API, the split ring's layout (virtio 1.3, 2.7) and how shared memory is touched.
 *
 * The driver may write to shared memory at any moment. Every value of its is loaded once, into a local, and only
 * the local is checked and used. Indexes carry acquire and release; everything else is ordered by them.
 */
#ifndef VHOST_CORE_H
#define VHOST_CORE_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Everything Python sees of the C core, in declarations only: the C sources include these files and cffi reads the
 * same text, so the two cannot drift apart. No preprocessor beyond integer constants. Order: csrc/build.py.
 */
#include "api/mem.h"
#include "api/guard.h"
#include "api/queue.h"
#include "api/data.h"
#include "api/path.h"
#include "api/uring.h"
#include "api/blk.h"
#include "api/rng.h"
#include "api/grants.h"
#include "api/driver.h"

enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };
enum { AVAIL_NO_INTERRUPT = 1, USED_NO_NOTIFY = 1 };
enum { DESC_SIZE = 16 };

struct desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};

struct avail {
    uint16_t flags;
    uint16_t idx;
    uint16_t ring[]; /* used_event follows the last entry */
};

struct used {
    uint16_t flags;
    uint16_t idx;
    struct {
        uint32_t id;
        uint32_t len;
    } ring[]; /* avail_event follows the last entry */
};

static inline uint16_t load16(const uint16_t *p)
{
    return le16toh(__atomic_load_n(p, __ATOMIC_RELAXED));
}

static inline void store16(uint16_t *p, uint16_t v)
{
    __atomic_store_n(p, htole16(v), __ATOMIC_RELAXED);
}

static inline uint16_t load16_acquire(const uint16_t *p)
{
    return le16toh(__atomic_load_n(p, __ATOMIC_ACQUIRE));
}

static inline void store16_release(uint16_t *p, uint16_t v)
{
    __atomic_store_n(p, htole16(v), __ATOMIC_RELEASE);
}

/* Orders our store to one index before our load of the other side's: both sides do it, so one sees the other. */
static inline void fence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* One descriptor, each half loaded once. Indirect tables need no alignment, so neither do these loads. */
static inline struct desc load_desc(const void *table, uint32_t i)
{
    struct half {
        uint64_t v;
    } __attribute__((packed, may_alias));
    const volatile struct half *h = (const volatile struct half *)((const char *)table + (size_t)i * DESC_SIZE);
    uint64_t addr = le64toh(h[0].v), rest = le64toh(h[1].v);

    return (struct desc){addr, (uint32_t)rest, (uint16_t)(rest >> 32), (uint16_t)(rest >> 48)};
}

/* Whether an event index asked to hear of the step from old to new (virtio 1.3, 2.7.7.2). */
static inline bool event_passed(uint16_t event, uint16_t new, uint16_t old)
{
    return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
}

static inline uint16_t *used_event(struct avail *avail, uint32_t num)
{
    return &avail->ring[num];
}

static inline uint16_t *avail_event(struct used *used, uint32_t num)
{
    return (uint16_t *)&used->ring[num];
}

/* ---- walk.c: descriptors to pieces of host memory -------------------------------------------------------- */

/* Negative: -(enum vh_error), with q->info filled in and the ring not yet marked. */
int vh_walk(struct vh_queue *q, struct vh_batch *b, uint32_t chain, const void *table, uint32_t entries,
            uint32_t first, bool indirect);

int vh_fail(struct vh_queue *q, enum vh_error error, uint64_t a, uint64_t b);

#endif
