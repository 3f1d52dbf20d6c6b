/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* A worker: serves its lanes in turn, polls a little when all are idle, and sleeps. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

enum { BUDGET = 1024, SPINS = 64, ROUNDS = 64 };
enum { GIVE_UP = 4, SKIP_MOST = 4096, WASTE = 4 };

/* Nanoseconds. */
#define WINDOW UINT64_C(10000)          /* polling, where nothing is known yet */
#define PERIOD UINT64_C(100000000)      /* over which fruitless polling is counted */
#define POLL_INTERVAL UINT64_C(1000000) /* between looks at a ring that is never kicked */

static uint64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

static bool stopping(const struct vh_worker *w)
{
    return __atomic_load_n(&w->stop, __ATOMIC_ACQUIRE);
}

void vh_worker_stop(struct vh_worker *w)
{
    __atomic_store_n(&w->stop, 1, __ATOMIC_RELEASE);
    if (write(w->stop_fd, &(uint64_t){1}, 8) < 0)
        return; /* it was told often enough */
}

/* Python has handled the lane: what it left it does not want now, or it would be asked again at once for ever. */
static void handled(struct vh_lane *l)
{
    l->declined = l->asked == 2 && l->queue->popped == l->popped;
    l->asked = 0;
}

/* Have a lane served. Returns an event, or -1: go on. */
static int serve(struct vh_worker *w, uint32_t which)
{
    struct vh_lane *l = w->lane[which];
    struct vh_queue *q = l->queue;
    bool look = l->look;

    w->which = which;
    if (q->stepping) {
        w->served = VH_S_STEP;
        return VH_W_SERVED;
    }
    l->look = 0;
    if (look)
        l->declined = 0;
    if (l->path)
        l->path->starved = 0;
    vh_kicks_off(q);
    if (!l->path) {
        l->asked = vh_available(q) ? 2 : 1;
        l->popped = q->popped;
        l->offered = vh_offered(q);
        l->due = 0;
        return VH_W_HANDLE;
    }
    w->served = vh_serve(l, BUDGET);
    if (w->served == VH_S_IDLE || w->served == VH_S_MORE)
        return -1;
    return VH_W_SERVED;
}

/* One round over the lanes; *any: there was something to do. */
static int serve_all(struct vh_worker *w, bool *any)
{
    for (uint32_t k = 0; k < w->n; k++) {
        uint32_t which = w->next < w->n ? w->next : 0;
        int event = -1;

        w->next = which + 1 < w->n ? which + 1 : 0;
        if (vh_lane_busy(w->lane[which])) {
            *any = true;
            event = serve(w, which);
        }
        if (event >= 0)
            return event;
    }
    return -1;
}

/* What came while the device had its look it has not declined. */
static void look_again(struct vh_lane *l)
{
    l->look |= vh_offered(l->queue) != l->offered;
}

static bool any_busy(const struct vh_worker *w)
{
    for (uint32_t i = 0; i < w->n; i++) {
        struct vh_lane *l = w->lane[i];

        if (l->declined && !l->off)
            look_again(l);
        if (vh_lane_busy(l))
            return true;
    }
    return false;
}

/* Look at the rings until something is there, until `end`, or until stopped. */
static bool spin(const struct vh_worker *w, uint64_t end)
{
    do {
        for (uint32_t i = 0; i < SPINS; i++) {
            if (any_busy(w))
                return true;
            relax();
        }
    } while (!stopping(w) && now() < end);
    return stopping(w);
}

/* Whether fruitless polling may go on: of the last while, it has a quarter at most. */
static bool affordable(struct vh_worker *w, uint64_t at)
{
    if (at - w->since > PERIOD) {
        w->since = at - PERIOD / 2;
        w->wasted /= 2;
    }
    return w->wasted <= PERIOD / WASTE;
}

/*
 * Poll before sleeping where that has found something lately. After a few failures in a row it is not tried for a
 * number of sleeps that doubles: what would come is not coming, or it does not come because we keep the processor.
 */
static bool poll_first(struct vh_worker *w)
{
    uint64_t start;

    if (w->polling == VH_POLL_NEVER || !w->poll_ns)
        return false;
    if (w->skip) {
        w->skip--;
        return false;
    }
    start = now();
    if (!affordable(w, start))
        return false;
    if (!w->window)
        w->window = w->poll_ns < WINDOW ? w->poll_ns : WINDOW;
    w->polls++;
    if (spin(w, start + w->window)) {
        w->hits++;
        w->missed = w->skipped = 0;
        return true;
    }
    w->wasted += w->window;
    w->window = w->window * 2 < w->poll_ns ? w->window * 2 : w->poll_ns;
    if (++w->missed >= GIVE_UP || w->skipped) {
        w->missed = 0;
        w->window = 0;
        w->skipped = w->skipped ? w->skipped * 2 : 16;
        if (w->skipped > SKIP_MOST)
            w->skipped = SKIP_MOST;
        w->skip = w->skipped;
    }
    return false;
}

/* Ask for kicks. Returns true if there is something after all. */
static bool ask_for_kicks(struct vh_worker *w)
{
    bool again = false;

    for (uint32_t i = 0; i < w->n; i++) {
        struct vh_lane *l = w->lane[i];

        if (l->off)
            continue;
        if (l->path && !l->path->serve && !l->path->starved)
            continue; /* it has chains, and waits for something to put into them */
        if (l->declined) {
            vh_kicks_past(l->queue);
            look_again(l);
        } else {
            vh_kicks_on(l->queue);
        }
        again |= vh_lane_busy(l);
    }
    return again;
}

/* Until when to sleep: milliseconds for poll(), rounded up, -1 for ever. */
static int timeout(const struct vh_worker *w)
{
    uint64_t first = 0, at;

    for (uint32_t i = 0; i < w->n; i++) {
        const struct vh_lane *l = w->lane[i];

        if (l->off || (!l->due && l->kick_fd >= 0))
            continue;
        at = l->kick_fd < 0 ? now() + POLL_INTERVAL : l->due;
        if (l->due && l->due < at)
            at = l->due;
        if (!first || at < first)
            first = at;
    }
    if (!first)
        return -1;
    at = now();
    if (first <= at)
        return 0;
    first = (first - at + 999999) / 1000000;
    return first < 60000 ? (int)first : 60000;
}

/* Take the kick; false: there will never be one again. */
static bool take_kick(struct vh_worker *w, struct vh_lane *l)
{
    int got = vh_take(l->kick_fd, l->kick_checked);

    l->look = 1;
    w->error = got < 0 && got != -EPIPE ? -got : 0;
    return got >= 0;
}

/* Wait for descriptors, and note which lanes they wake. Returns an event, or -1: go on. */
static int wait_for_kicks(struct vh_worker *w, int ms)
{
    struct pollfd *fds = w->poll;
    nfds_t n = 1;
    uint64_t at;

    fds[0] = (struct pollfd){.fd = w->stop_fd, .events = POLLIN};
    for (uint32_t i = 0; i < w->n; i++) {
        struct vh_lane *l = w->lane[i];
        const struct vh_path *p = l->path;
        bool events = p && p->event_fd >= 0 && (p->serve ? p->flying : !p->starved);

        fds[n++] = (struct pollfd){.fd = l->off == VH_OFF ? -1 : l->kick_fd, .events = POLLIN};
        fds[n++] = (struct pollfd){.fd = l->off || !events ? -1 : p->event_fd, .events = POLLIN};
    }
    w->sleeps += ms != 0;
    if (poll(fds, n, ms) < 0)
        return -1;
    at = now();
    for (uint32_t i = 0; i < w->n; i++) {
        struct vh_lane *l = w->lane[i];

        if (l->off == VH_OFF)
            continue;
        if (fds[2 * i + 2].revents || l->kick_fd < 0 || (l->due && l->due <= at))
            l->look = 1;
        if (!fds[2 * i + 1].revents)
            continue;
        w->which = i;
        if (!take_kick(w, l))
            return VH_W_KICK;
        if (l->off)
            return VH_W_HEARD;
    }
    /* Python reads it, also where `stop` was overwritten when that took an earlier one back. */
    return fds[0].revents ? VH_W_STOP : -1;
}

/* When all lanes are idle. */
static int rest(struct vh_worker *w)
{
    if (w->polling == VH_POLL_ALWAYS)
        return spin(w, now() + POLL_INTERVAL) ? -1 : wait_for_kicks(w, 0);
    if (poll_first(w) || ask_for_kicks(w))
        return -1;
    return wait_for_kicks(w, timeout(w));
}

int vh_worker_run(struct vh_worker *w)
{
    for (uint32_t i = 0; i < w->n; i++)
        if (w->lane[i]->asked)
            handled(w->lane[i]);
    for (;;) {
        bool any = false;
        int event = -1;

        if (stopping(w))
            return VH_W_STOP;
        /* Lanes that wait for a descriptor have their turn even if another is never idle. */
        if (++w->rounds % ROUNDS == 0)
            event = wait_for_kicks(w, 0);
        if (event < 0)
            event = serve_all(w, &any);
        if (event < 0 && !any)
            event = rest(w);
        if (event >= 0)
            return event;
    }
}

/* Memory that this thread touches first comes from a NUMA node, as far as it has any. Returns 0 or -errno. */
int vh_prefer_node(uint32_t node)
{
    unsigned long mask[16] = {0};
    enum { BITS = 8 * sizeof(mask[0]), PREFERRED = 1 };

    if (node >= BITS * (sizeof(mask) / sizeof(mask[0])))
        return -EINVAL;
    mask[node / BITS] = 1ul << node % BITS;
    return syscall(SYS_set_mempolicy, PREFERRED, mask, 8 * sizeof(mask)) ? -errno : 0;
}
