/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* A load for a device: what a driver can do at most, or at a given depth. */
#define _GNU_SOURCE
#include <poll.h>
#include <time.h>
#include <unistd.h>

#include "driver.h"

enum { LOOKS_PER_CLOCK = 256 };

static uint64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void show(struct vh_driver *d, struct vh_load *l)
{
    if (!vh_driver_publish(d) || l->kick_fd < 0)
        return;
    l->kicks++;
    /* A full counter already means what we have to say. */
    if (write(l->kick_fd, &(uint64_t){1}, 8) < 0)
        return;
}

/* Send request number `slot`; false if the ring has no room for it. */
static bool send_new(struct vh_driver *d, struct vh_load *l, uint32_t slot)
{
    int id = vh_driver_add(d, l->bufs + (size_t)slot * l->n_bufs, l->n_bufs);

    if (id < 0)
        return false;
    l->slots[id] = slot;
    l->flying++;
    l->sent++;
    return true;
}

/* What came back is sent once more, as long as there is something to send. */
static void turn_around(struct vh_driver *d, struct vh_load *l, uint32_t n)
{
    l->done += n;
    l->flying -= n;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t id = l->used[i].id;

        l->written += l->used[i].len;
        if (l->sent >= l->limit) {
            if (d->keep)
                vh_driver_free(d, id);
        } else if (d->keep) {
            vh_driver_again(d, id);
            l->flying++;
            l->sent++;
        } else {
            send_new(d, l, l->slots[id]);
        }
    }
    show(d, l);
}

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Wait for a call, at most ns. */
static void sleep_for(struct vh_driver *d, struct vh_load *l, uint64_t ns)
{
    struct pollfd wait = {.fd = l->call_fd, .events = POLLIN};
    struct timespec left = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    uint64_t count;

    if (vh_driver_calls_on(d))
        return;
    l->sleeps++;
    /* Nothing to read is as well: the ring is looked at in any case. */
    if (ppoll(&wait, 1, &left, NULL) > 0 && read(l->call_fd, &count, 8) < 0)
        count = 0;
    if (!(d->features & VH_F_EVENT_IDX))
        vh_driver_calls_off(d);
}

int vh_driver_load(struct vh_driver *d, struct vh_load *l, uint64_t ns)
{
    uint64_t end = now() + ns;
    uint32_t held = 0, looks = 0;

    if (!l->flying) {
        d->keep = d->kind != VH_PACKED && !(d->features & VH_F_IN_ORDER);
        for (uint32_t i = 0; i < l->depth && l->sent < l->limit && send_new(d, l, i); i++)
            ;
        show(d, l);
    }
    while (l->flying) {
        int n = vh_driver_poll(d, l->used + held, d->num - held);
        uint64_t t;

        if (n < 0)
            return n;
        held += (uint32_t)n;
        if (held && (held >= l->batch || held == l->flying)) {
            turn_around(d, l, held);
            held = 0;
        }
        if (n && ++looks % LOOKS_PER_CLOCK)
            continue;
        if (!n && l->call_fd < 0 && ++looks % LOOKS_PER_CLOCK) {
            relax();
            continue;
        }
        t = now();
        if (t < end && !n && l->call_fd >= 0)
            sleep_for(d, l, end - t);
        if (t >= end)
            break;
    }
    if (held)
        turn_around(d, l, held);
    if (l->flying)
        return 0;
    d->keep = 0;
    return 1;
}
