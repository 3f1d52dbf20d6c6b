/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * Both sides of a ring on one thread, in memory of this process: a driver offers requests of a disk, 64 at a time, and
 * the data path of a disk that keeps nothing serves them. The functions named *_side are what callgrind counts.
 *
 *   ring REQUESTS [packed] [event-idx] [indirect] [in-order] [inflight] [log] [regions]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blk.h"
#include "ring.h"

enum { NUM = 256, FLIGHT = 64, TABLE = 4, DATA = 4096, REGIONS = 64, PIECES = 1024 };
enum { ROOM = BLK_HEADER + DATA + 64 };
enum { BASE = 0x40000000, STRIDE = 0x100000 };

static struct {
    struct vh_queue queue;
    struct vh_driver driver;
    struct vh_batch batch;
    struct vh_lane lane;
    struct vh_blk disk;
    struct vh_blk_path path;
    struct vh_log log;
    struct vh_mem *mem;
    struct vh_buf buf[FLIGHT][3];
    struct vh_used used[FLIGHT];
} rig;

static struct {
    int packed, event_idx, indirect, in_order, inflight, log, regions;
} want;

static const struct {
    const char *name;
    int *flag;
} options[] = {
    {"packed", &want.packed},     {"event-idx", &want.event_idx}, {"indirect", &want.indirect},
    {"in-order", &want.in_order}, {"inflight", &want.inflight},   {"log", &want.log},
    {"regions", &want.regions},
};

static void *zeroed(size_t size)
{
    void *p = aligned_alloc(4096, (size + 4095) & ~(size_t)4095);

    if (!p)
        abort();
    return memset(p, 0, size);
}

/* Guest memory of n regions, each with room for its share of the requests' buffers. */
static void make_memory(uint32_t n)
{
    size_t size = (size_t)(FLIGHT / n + 1) * ROOM + NUM * TABLE * DESC_SIZE + 4096;

    rig.mem = vh_mem_new(NULL, n);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t gpa = BASE + (uint64_t)i * STRIDE;

        if (vh_mem_put(rig.mem, gpa, size, gpa) < 0)
            abort();
        vh_mem_back(rig.mem, gpa, (uintptr_t)zeroed(size), 0, 0, 1);
    }
    vh_mem_index(rig.mem);
    for (uint32_t i = 0; i < FLIGHT; i++) {
        const struct vh_region *r = &rig.mem->region[i % n];
        uint64_t at = i / n * ROOM;
        uint64_t header[2] = {htole64(BLK_IN), htole64(i * (DATA / BLK_SECTOR))};

        memcpy(r->host + at, header, sizeof header);
        rig.buf[i][0] = (struct vh_buf){r->gpa + at, BLK_HEADER, 0};
        rig.buf[i][1] = (struct vh_buf){r->gpa + at + BLK_HEADER, DATA, 1};
        rig.buf[i][2] = (struct vh_buf){r->gpa + at + BLK_HEADER + DATA, 1, 1};
    }
}

static void make_driver(uint32_t features)
{
    struct vh_driver *d = &rig.driver;
    const struct vh_region *r = &rig.mem->region[0];
    uint64_t tables = r->size - NUM * TABLE * DESC_SIZE;

    d->desc = zeroed(NUM * DESC_SIZE);
    d->avail = zeroed(6 + 2 * NUM);
    d->used = zeroed(6 + 8 * NUM);
    d->flight = zeroed(NUM * sizeof *d->flight);
    d->order = want.in_order ? zeroed(NUM * sizeof *d->order) : NULL;
    d->num = NUM;
    d->kind = want.packed ? VH_PACKED : VH_SPLIT;
    d->features = features;
    if (want.indirect) {
        d->tables = r->host + tables;
        d->tables_gpa = r->gpa + tables;
        d->table_len = TABLE;
    }
    vh_driver_init(d);
}

static void make_device(uint32_t features)
{
    struct vh_queue *q = &rig.queue;
    struct vh_batch *b = &rig.batch;

    q->mem = rig.mem;
    q->desc = rig.driver.desc;
    q->avail = rig.driver.avail;
    q->used = rig.driver.used;
    q->num = q->max_chain = q->num_turns = NUM;
    q->kind = rig.driver.kind;
    q->avail_wrap = q->used_wrap = 1;
    q->features = features | (want.log ? VH_F_LOG_DATA | VH_F_LOG_USED : 0);
    q->call_fd = -1;
    q->scratch = zeroed(NUM * DESC_SIZE);
    q->turns = zeroed(NUM * sizeof *q->turns);
    if (want.log) {
        rig.log = (struct vh_log){.size = (2ull * BASE >> 12) / 8, .fd = -1};
        rig.log.bits = zeroed(rig.log.size);
        q->log = &rig.log;
        q->log_used = q->log_desc = BASE;
    }
    if (want.inflight) {
        q->inflight.region = zeroed(vh_inflight_size(NUM, want.packed));
        vh_inflight_format(q->inflight.region, NUM, want.packed);
        q->inflight.again = zeroed(NUM * sizeof *q->inflight.again);
        q->inflight.next = zeroed(NUM * sizeof *q->inflight.next);
        q->inflight.table = zeroed(NUM * DESC_SIZE);
    }
    if (vh_queue_init(q))
        abort();
    b->cap = FLIGHT;
    b->cap_iov = PIECES;
    b->chain = zeroed(b->cap * sizeof *b->chain);
    b->iov = zeroed(b->cap_iov * sizeof *b->iov);
    b->log = zeroed(b->cap_iov * sizeof *b->log);
    rig.disk = (struct vh_blk){.capacity = 1 << 20, .fd = -1, .block = BLK_SECTOR, .align = 1};
    vh_blk_null_init(&rig.path, &rig.disk);
    rig.lane = (struct vh_lane){.queue = q, .path = &rig.path.path, .spare = b, .kick_fd = -1};
}

/* Offer all requests, or take them back. */
static __attribute__((noinline)) int driver_side(int offer)
{
    if (!offer)
        return vh_driver_poll(&rig.driver, rig.used, FLIGHT);
    for (uint32_t i = 0; i < FLIGHT; i++)
        if (vh_driver_add(&rig.driver, rig.buf[i], 3) < 0)
            return -1;
    return vh_driver_publish(&rig.driver);
}

/* Serve what is there, as a worker does between two sleeps. */
static __attribute__((noinline)) int device_side(void)
{
    vh_kicks_off(&rig.queue);
    if (vh_serve(&rig.lane, UINT32_MAX) != VH_S_IDLE)
        return -1;
    return vh_kicks_on(&rig.queue);
}

int main(int argc, char **argv)
{
    uint64_t requests = argc > 1 ? strtoull(argv[1], NULL, 10) : 0;
    uint32_t features = 0;

    for (int i = 2; i < argc; i++) {
        size_t k = 0;

        while (k < sizeof options / sizeof *options && strcmp(argv[i], options[k].name))
            k++;
        if (k == sizeof options / sizeof *options)
            return 2;
        *options[k].flag = 1;
    }
    features |= want.event_idx ? VH_F_EVENT_IDX : 0;
    features |= want.indirect ? VH_F_INDIRECT : 0;
    features |= want.in_order ? VH_F_IN_ORDER : 0;
    make_memory(want.regions ? REGIONS : 1);
    make_driver(features);
    make_device(features);
    while (rig.queue.pushed < requests) {
        if (driver_side(1) < 0 || device_side() < 0)
            return 1;
        if (driver_side(0) != FLIGHT || rig.used[0].len != DATA + 1)
            return 1;
    }
    printf("%llu\n", (unsigned long long)rig.queue.pushed);
    return 0;
}
