/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * The load generator: offers requests, takes them back, checks each of them, and offers them again. It knows nothing
 * of the ring but the driver's functions, and it allocates nothing.
 */
#include <endian.h>
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

enum { SECTOR = 512, BLK_T_IN = 0, BLK_T_OUT = 1, UNWRITTEN = 0xff };
enum { FILLED = 16 }; /* bytes that are looked at of those that a device makes up */
/* How long a sleep may last before its reason is looked into, and once more if requests have come back: ms. */
enum { SLEEP = 100, GRACE = 100 };
enum { SPINS = 1 << 12 }; /* turns without a request back before a spinning driver asks after its peer */

/* A clock for latencies. What a tick is, the caller finds out by comparison. */
static inline uint64_t now(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t t;

    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(t));
    return t;
#else
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
#endif
}

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

uint64_t vh_bench_ticks(void)
{
    return now();
}

/* Marsaglia's xorshift. */
static uint64_t draw(struct vh_bench *l)
{
    l->seed ^= l->seed << 13;
    l->seed ^= l->seed >> 7;
    l->seed ^= l->seed << 17;
    return l->seed;
}

static void record(struct vh_bench *l, uint64_t ticks, uint64_t n)
{
    uint64_t i = ticks;

    if (ticks >= VH_BENCH_SUB) {
        unsigned power = 63 - (unsigned)__builtin_clzll(ticks);

        i = (power - 5) * (uint64_t)VH_BENCH_SUB + ((ticks >> (power - 6)) & (VH_BENCH_SUB - 1));
    }
    l->histogram[i < VH_BENCH_BUCKETS ? i : VH_BENCH_BUCKETS - 1] += n;
}

static void fault(struct vh_bench *l, enum vh_bench_fault what, uint64_t a, uint64_t b)
{
    if (l->faults++)
        return;
    l->fault = what;
    l->info[0] = a;
    l->info[1] = b;
}

/* ---- one request ------------------------------------------------------------------------------------------ */

static void stamp(const struct vh_bench_slot *s, uint64_t salt)
{
    for (uint32_t at = 0; at < s->size; at += SECTOR) {
        uint64_t word = htole64((s->sector + at / SECTOR) ^ salt);

        memcpy(s->data + at, &word, sizeof word);
    }
}

static void check_stamps(struct vh_bench *l, const struct vh_bench_slot *s)
{
    for (uint32_t at = 0; at < s->size; at += SECTOR) {
        uint64_t word, sector = s->sector + at / SECTOR;

        memcpy(&word, s->data + at, sizeof word);
        if (le64toh(word) != (sector ^ l->salt)) {
            fault(l, VH_BENCH_BAD_DATA, le64toh(word), sector);
            return;
        }
    }
}

/* The buffer's first bytes are not what prepare_fill() left there: random ones are not all zero. */
static void check_filled(struct vh_bench *l, const struct vh_bench_slot *s)
{
    uint64_t word[FILLED / 8];

    memcpy(word, s->data, sizeof word);
    if (!(word[0] | word[1]))
        fault(l, VH_BENCH_BAD_DATA, 0, 0);
    l->sampled++;
}

static inline bool is_blk(const struct vh_bench *l)
{
    return l->kind == VH_BENCH_BLK_READ || l->kind == VH_BENCH_BLK_WRITE;
}

static bool drawn(struct vh_bench *l)
{
    return l->sample && (l->sample == 1 || draw(l) % l->sample == 0);
}

static void prepare_fill(struct vh_bench *l, struct vh_bench_slot *s)
{
    s->sampled = s->size >= FILLED && drawn(l);
    if (s->sampled)
        memset(s->data, 0, FILLED);
}

static void prepare_blk(struct vh_bench *l, struct vh_bench_slot *s)
{
    uint32_t step = s->size / SECTOR;
    struct {
        uint32_t type;
        uint32_t priority;
        uint64_t sector;
    } header = {htole32(l->kind == VH_BENCH_BLK_WRITE ? BLK_T_OUT : BLK_T_IN), 0, 0};

    if (l->random) {
        /* Scaled, not by a remainder: a division costs as much as the rest of this. */
        s->sector = ((draw(l) >> 32) * l->places >> 32) * step;
    } else {
        s->sector = l->next_sector;
        l->next_sector += step;
        if (l->next_sector >= l->sectors)
            l->next_sector = 0;
    }
    header.sector = htole64(s->sector);
    memcpy(s->header, &header, sizeof header);
    *s->status = UNWRITTEN;
    s->sampled = 0;
    if (l->kind == VH_BENCH_BLK_WRITE) {
        if (l->sample)
            stamp(s, l->salt);
    } else if (drawn(l)) {
        /* What an earlier request left there must not look like this one's data. */
        stamp(s, ~l->salt);
        s->sampled = 1;
    }
}

/* Look at a request that has come back; returns the bytes it moved. */
static inline uint64_t check(struct vh_bench *l, struct vh_bench_slot *s, uint32_t length)
{
    uint8_t status = is_blk(l) ? *s->status : 0;

    switch (l->kind) {
    case VH_BENCH_BLK_READ:
        if (status)
            fault(l, VH_BENCH_BAD_STATUS, status, s->sector);
        else if (length != s->size + 1)
            fault(l, VH_BENCH_BAD_LENGTH, length, s->size + 1);
        if (s->sampled) {
            check_stamps(l, s);
            l->sampled++;
        }
        return s->size;
    case VH_BENCH_BLK_WRITE:
        if (status)
            fault(l, VH_BENCH_BAD_STATUS, status, s->sector);
        else if (length > 1)
            fault(l, VH_BENCH_BAD_LENGTH, length, 1);
        return s->size;
    case VH_BENCH_FILL:
        if (length > s->size || length < l->min_length)
            fault(l, VH_BENCH_BAD_LENGTH, length, s->size);
        else if (s->sampled && length >= FILLED)
            check_filled(l, s);
        return length;
    default:
        if (length)
            fault(l, VH_BENCH_BAD_LENGTH, length, 0);
        return s->size;
    }
}

/* ---- the loop --------------------------------------------------------------------------------------------- */

/* Lay out the chain of a slot; false if the ring has no room for it. */
static bool add(struct vh_bench *l, uint16_t slot)
{
    struct vh_bench_slot *s = &l->slot[slot];
    int id = vh_driver_add(l->driver, s->buf, s->n);

    if (id < 0)
        return false;
    l->owner[id] = slot;
    if (l->driver->keep)
        s->id = id;
    return true;
}

/* The chains of idle slots, from the first to before the end, are not wanted any more. */
static void forget(struct vh_bench *l, uint32_t first, uint32_t end)
{
    for (uint32_t i = first; i < end; i++) {
        struct vh_bench_slot *s = &l->slot[l->idle[i]];

        if (s->id >= 0)
            vh_driver_free(l->driver, (uint32_t)s->id);
        s->id = -1;
    }
}

/* Offer the idle slots, n of them, and show them to the device. */
static int offer(struct vh_bench *l, uint32_t n, uint64_t time)
{
    for (uint32_t i = 0; i < n; i++) {
        struct vh_bench_slot *s = &l->slot[l->idle[i]];

        if (is_blk(l))
            prepare_blk(l, s);
        else if (l->kind == VH_BENCH_FILL)
            prepare_fill(l, s);
        s->started = time;
        if (s->id >= 0)
            vh_driver_again(l->driver, (uint32_t)s->id);
        else if (!add(l, l->idle[i]))
            return VH_BENCH_FULL;
    }
    if (vh_driver_publish(l->driver)) {
        l->kicks++;
        /* EAGAIN: so many kicks are pending that the device cannot have missed them. */
        if (write(l->kick_fd, &(uint64_t){1}, 8) < 0 && errno != EAGAIN) {
            l->info[0] = (uint64_t)errno;
            return VH_BENCH_SYSTEM;
        }
    }
    return VH_BENCH_OK;
}

/* What the descriptors say within so many milliseconds: 1 a call, 0 nothing, negative as vh_bench_run(). */
static int hear(struct vh_bench *l, int timeout)
{
    struct epoll_event event[2];
    int n = epoll_wait(l->epoll_fd, event, 2, timeout);

    if (n < 0 && errno != EINTR)
        l->info[0] = (uint64_t)errno;
    if (n < 0)
        return errno == EINTR ? VH_BENCH_INTERRUPTED : VH_BENCH_SYSTEM;
    for (int i = 0; i < n; i++)
        if (event[i].data.fd != l->call_fd)
            return VH_BENCH_GONE;
    return n;
}

/* Sleep until the device calls; requests may have come back then. */
static int sleep_for_call(struct vh_bench *l)
{
    int called;

    if (vh_driver_calls_on(l->driver))
        return VH_BENCH_OK;
    l->sleeps++;
    called = hear(l, SLEEP);
    /* Between the used index and the call the device may have been kept from running. */
    if (!called && vh_driver_calls_on(l->driver)) {
        called = hear(l, GRACE);
        l->lost += !called;
    }
    vh_driver_calls_off(l->driver);
    return called < 0 ? called : VH_BENCH_OK;
}

/* Load the device; returns an enum vh_bench_end. After anything but VH_BENCH_OK the queue is of no more use. */
int vh_bench_run(struct vh_bench *l)
{
    uint64_t start = now(), last = start, time = start;
    uint32_t flying = l->depth, spins = 0;
    uint64_t left = l->limit ? l->limit : UINT64_MAX;
    int bad, n;

    l->done = l->bytes = l->kicks = l->sleeps = l->lost = l->sampled = l->faults = 0;
    l->fault = VH_BENCH_NO_FAULT;
    l->places = is_blk(l) ? l->sectors / (l->slot[0].size / SECTOR) : 0;
    l->places = l->places < UINT32_MAX ? l->places : UINT32_MAX;
    if (left < flying)
        flying = (uint32_t)left;
    for (uint32_t i = 0; i < flying; i++) {
        l->idle[i] = (uint16_t)i;
        l->slot[i].id = -1;
    }
    /* A chain that is offered over and over need not be written over and over. */
    l->driver->keep = l->driver->kind != VH_PACKED && !(l->driver->features & VH_F_IN_ORDER);
    vh_driver_calls_off(l->driver);
    bad = offer(l, flying, start);
    left -= flying;
    while (flying && !bad) {
        uint32_t again;

        n = vh_driver_poll(l->driver, l->used, l->depth);
        if (n < 0)
            return VH_BENCH_BAD_USED;
        if (!n) {
            if (!l->poll)
                bad = sleep_for_call(l);
            else if (++spins % SPINS == 0)
                bad = hear(l, 0);
            else
                relax();
            bad = bad < 0 ? bad : VH_BENCH_OK;
            if (!bad && (!l->poll || spins % SPINS == 0) && now() - last > l->hang)
                bad = VH_BENCH_HUNG;
            continue;
        }
        last = time = now();
        for (int i = 0; i < n; i++) {
            uint16_t slot = l->owner[l->used[i].id];
            struct vh_bench_slot *s = &l->slot[slot];

            l->bytes += check(l, s, l->used[i].len);
            record(l, time - s->started, 1);
            l->idle[i] = slot;
        }
        l->done += (uint32_t)n;
        again = time - start < l->ticks ? (uint32_t)n : 0;
        again = again < left ? again : (uint32_t)left;
        flying = flying - (uint32_t)n + again;
        left -= again;
        forget(l, again, (uint32_t)n);
        if (again)
            bad = offer(l, again, time);
    }
    l->driver->keep = 0;
    l->elapsed = now() - start;
    return bad;
}
