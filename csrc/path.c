/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Serving a queue by its native data path: pop, serve, push, until there is nothing left or Python is needed. */
#include <poll.h>

#include "core.h"

enum { BATCH = 64 };

static void reclaim(struct vh_lane *l)
{
    struct vh_batch *b;

    while ((b = l->path->idle)) {
        l->path->idle = b->next;
        vh_lane_return(l, b);
    }
}

void vh_lane_return(struct vh_lane *l, struct vh_batch *b)
{
    b->next = l->spare;
    l->spare = b;
}

uint32_t vh_path_serve(struct vh_path *p, struct vh_queue *q, struct vh_batch *b)
{
    return p->serve(p, q, b);
}

/* Whether there is something to do for a lane, without asking the kernel. */
int vh_lane_busy(const struct vh_lane *l)
{
    const struct vh_path *p = l->path;

    if (l->off)
        return 0;
    if (l->look || l->queue->stepping)
        return 1;
    if (p && p->ready && (p->flying || (!p->serve && !p->starved)) && p->ready(p))
        return 1;
    /* A path that takes chains by itself does so when it has a use for them. */
    if (p && !p->serve)
        return p->starved && vh_available(l->queue);
    return !l->declined && !(p && !l->spare) && vh_available(l->queue);
}

static int failed(int error)
{
    return error == -VH_E_MISS ? VH_S_MISS : VH_S_BROKEN;
}

int vh_serve(struct vh_lane *l, uint32_t budget)
{
    struct vh_queue *q = l->queue;
    struct vh_path *p = l->path;

    for (uint32_t done = 0; done < budget;) {
        struct vh_batch *b;
        uint32_t left;
        int n;

        if (p->reap && (p->flying || !p->serve)) {
            n = p->reap(p, q);
            if (n < 0)
                return failed(n);
            done += (uint32_t)n;
            if (!p->serve && !n)
                return VH_S_IDLE;
            reclaim(l);
        }
        if (!p->serve)
            continue;
        b = l->spare;
        if (!b)
            return VH_S_IDLE;
        n = vh_pop(q, b, l->single ? 1 : BATCH);
        if (n < 0)
            return failed(n);
        if (!n)
            return VH_S_IDLE;
        l->spare = b->next;
        left = b->n_defer ? b->n : p->serve(p, q, b);
        if (b->n != (uint32_t)n)
            l->single = 1;
        else if (!left)
            l->single = 0;
        if (left) {
            l->left = b;
            return VH_S_LEFT;
        }
        vh_push(q, b);
        if (!b->pending)
            vh_lane_return(l, b);
        done += (uint32_t)n;
    }
    return VH_S_MORE;
}

void vh_drain(struct vh_lane *l)
{
    struct vh_path *p = l->path;

    while (p && p->flying) {
        struct pollfd wait = {.fd = p->event_fd, .events = POLLIN};

        if (!p->reap(p, l->queue))
            poll(&wait, 1, 100);
        reclaim(l);
    }
}
