/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Frames in chains (virtio 1.3, 5.1.6), and the networks that need no more: everything vanishes, or is made up. */
#include <string.h>

#include "net.h"

static void record_all(struct vh_net *n, const struct vh_batch *b)
{
    for (uint32_t i = 0; i < b->n; i++) {
        struct frame f;

        if (b->chain[i].state == VH_POPPED && frame_of(n, b, &b->chain[i], &f))
            vh_net_record_pieces(n, f.iov, f.n, f.skip, f.len);
    }
}

static uint32_t serve(struct vh_path *self, struct vh_queue *q, struct vh_batch *b)
{
    struct vh_net *n = (struct vh_net *)self;

    (void)q;
    if (n->off) {
        for (uint32_t i = 0; i < b->n; i++)
            b->chain[i].state = VH_DONE;
        n->dropped += b->n;
        return 0;
    }
    if (n->record >= 0)
        record_all(n, b);
    return n->send(n, b);
}

void vh_net_sends(struct vh_net *n, uint32_t (*send)(struct vh_net *n, struct vh_batch *b))
{
    n->path.serve = serve;
    n->path.event_fd = -1;
    n->send = send;
}

/* Chains are taken when there is no more room in those that were taken before. */
static int refill(struct vh_net *n, struct vh_queue *q, struct vh_batch *b)
{
    int got;

    vh_net_release(n, q);
    got = vh_pop(q, b, b->cap);
    n->from = 0;
    return got;
}

static int receive(struct vh_path *self, struct vh_queue *q)
{
    struct vh_net *n = (struct vh_net *)self;
    struct vh_batch *b = n->batch;
    uint32_t got;

    if (n->off)
        return 0;
    if (n->hungry || n->from == b->n) {
        int bad = refill(n, q, b);

        if (bad < 0) {
            self->starved = 1;
            return bad;
        }
    }
    n->hungry = 0;
    got = n->fill(n, q, b);
    if (got)
        vh_push(q, b);
    if (q->features & VH_F_TRANSLATED)
        vh_net_release(n, q);
    self->starved = n->hungry;
    return (int)got;
}

void vh_net_receives(struct vh_net *n,
                     uint32_t (*fill)(struct vh_net *n, const struct vh_queue *q, struct vh_batch *b))
{
    n->path.reap = receive;
    n->path.event_fd = -1;
    n->fill = fill;
}

void vh_net_release(struct vh_net *n, struct vh_queue *q)
{
    if (n->batch && n->batch->n > n->from)
        vh_put_back(q, n->batch, n->from);
}

/* ---- receiving ------------------------------------------------------------------------------------------- */

uint32_t vh_net_room(const struct vh_net *n, const struct vh_batch *b, uint32_t first, uint64_t need)
{
    const struct vh_chain *c = &b->chain[first];
    uint64_t room = 0;

    /* The header is never spread over chains. */
    if (first >= b->n || c->write_len < n->header)
        return 0;
    if (!n->merge)
        return c->write_len >= need;
    for (uint32_t i = first; i < b->n; i++) {
        room += b->chain[i].write_len;
        if (room >= need)
            return i - first + 1;
    }
    return 0;
}

void vh_net_complete(struct vh_net *n, struct vh_batch *b, uint32_t count, uint64_t len)
{
    struct vh_chain *first = &b->chain[n->from];
    struct vh_iov *iov = &b->iov[first->iov + first->n_read];
    uint16_t buffers = field(n, (uint16_t)count);
    uint64_t left = len;

    if (n->header > NUM_BUFFERS)
        vh_scatter(iov, first->n_write, NUM_BUFFERS, &buffers, sizeof(buffers));
    for (uint32_t i = 0; i < count; i++) {
        struct vh_chain *c = &first[i];

        c->written = (uint32_t)(left < c->write_len ? left : c->write_len);
        left -= c->written;
        c->state = VH_DONE;
    }
    n->from += count;
    n->frames++;
    n->bytes += len - n->header;
    if (n->record >= 0)
        vh_net_record_chains(n, b, first, count, (uint32_t)(len - n->header));
}

static __attribute__((noinline, cold)) bool passes(const struct vh_net *n, const void *frame, uint32_t len)
{
    return vh_net_passes(n, &(struct vh_iov){(void *)(uintptr_t)frame, len}, 1, 0);
}

bool vh_net_deliver(struct vh_net *n, const struct vh_queue *q, struct vh_batch *b, const void *frame,
                    uint32_t len)
{
    static const uint8_t header[NET_HEADER_MAX];
    struct vh_chain *c = &b->chain[n->from];
    uint32_t count, done = 0;
    uint64_t skip = n->header;

    if (filtered(n) && !passes(n, frame, len))
        return true;
    count = vh_net_room(n, b, n->from, (uint64_t)len + n->header);
    if (!count) {
        /* Better lose this one than wait for room that never comes, with all others behind it. */
        if (n->from < b->n && (!n->merge || that_is_all(n, q, b))) {
            n->dropped++;
            return true;
        }
        n->hungry = 1;
        return false;
    }
    vh_scatter(&b->iov[c->iov + c->n_read], c->n_write, 0, header, n->header);
    for (uint32_t i = 0; i < count; i++, skip = 0)
        done += (uint32_t)vh_scatter(&b->iov[c[i].iov + c[i].n_read], c[i].n_write, skip,
                                     (const char *)frame + done, len - done);
    vh_net_complete(n, b, count, (uint64_t)len + n->header);
    return true;
}

/* ---- networks -------------------------------------------------------------------------------------------- */

static uint32_t discard(struct vh_net *n, struct vh_batch *b)
{
    uint64_t bytes = 0;
    uint32_t bad = 0;

    for (uint32_t i = 0; i < b->n; i++) {
        struct vh_chain *c = &b->chain[i];
        struct frame f;

        if (frame_of(n, b, c, &f))
            bytes += f.len;
        else
            bad++;
        c->state = VH_DONE;
    }
    n->malformed += bad;
    n->frames += b->n - bad;
    n->bytes += bytes;
    return 0;
}

/* One write for frame and header where both go to one piece, as they do with nearly every driver. */
static uint32_t generate(struct vh_net *n, const struct vh_queue *q, struct vh_batch *b)
{
    struct vh_net_generator *g = (struct vh_net_generator *)n;
    const uint16_t one = field(n, 1);
    uint8_t header[NET_HEADER_MAX] = {0};
    uint32_t first = n->from, len = n->header + g->len;

    memcpy(header + NUM_BUFFERS, &one, sizeof(one));
    for (uint32_t i = first; i < b->n; i++)
        __builtin_prefetch(b->iov[b->chain[i].iov].base, 1);
    while (n->from < b->n) {
        uint32_t at = n->from;
        struct vh_chain *c = &b->chain[at];
        const struct vh_iov *iov = &b->iov[c->iov + c->n_read];
        uint32_t number = htobe32(g->number);

        if (n->record < 0 && c->write_len >= len && iov->len >= len) {
            memcpy(iov->base, header, n->header);
            memcpy((char *)iov->base + n->header, g->frame, g->len);
            memcpy((char *)iov->base + n->header + VH_NET_FRAME_MIN, &number, sizeof(number));
            c->written = len;
            c->state = VH_DONE;
            n->from++;
            n->frames++;
            n->bytes += g->len;
        } else {
            memcpy(g->frame + VH_NET_FRAME_MIN, &number, sizeof(number));
            if (!vh_net_deliver(n, q, b, g->frame, g->len) || n->from == at)
                break; /* no room, now or for ever */
        }
        g->number++;
    }
    n->hungry = 1;
    return n->from - first;
}

static uint32_t nothing(struct vh_net *n, const struct vh_queue *q, struct vh_batch *b)
{
    (void)n;
    (void)q;
    (void)b;
    return 0;
}

void vh_net_discard(struct vh_net *n)
{
    vh_net_sends(n, discard);
}

void vh_net_silence(struct vh_net *n)
{
    vh_net_receives(n, nothing);
}

void vh_net_generate(struct vh_net_generator *g)
{
    vh_net_receives(&g->net, generate);
}
