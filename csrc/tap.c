/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * TAP interfaces: frames and their headers between guest memory and the kernel, without a copy of ours. The kernel's
 * headers are little-endian: not every kernel can be told to have others (TUNSETVNETBE).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>

#include "net.h"

/* The most pieces of one read: those of a batch full of chains, and one of ours. */
enum { READ_IOV = 256 };
/* Reads in one go: those that bring nothing for the guest count too. */
enum { READ_TRIES = 256 };
/* Where the fields of two bytes begin in a header. */
enum { FIELDS = 2 };

/* Turn round the fields of a header that have two bytes, all but num_buffers, which the kernel does not look at. */
static void turn(uint8_t *header)
{
    for (uint32_t at = FIELDS; at < NUM_BUFFERS; at += 2) {
        uint8_t first = header[at];

        header[at] = header[at + 1];
        header[at + 1] = first;
    }
}

/* Write a frame whose header is big-endian. */
static __attribute__((noinline, cold)) ssize_t write_turned(const struct vh_net_tap *t, const struct frame *f)
{
    uint8_t header[NET_HEADER_MAX];
    struct iovec iov[IOV_MAX];
    uint64_t skip = t->net.header;
    uint32_t n = 1;

    vh_gather(f->iov, f->n, 0, header, t->net.header);
    turn(header);
    iov[0] = (struct iovec){header, t->net.header};
    for (uint32_t i = 0; i < f->n; i++) {
        if (skip >= f->iov[i].len) {
            skip -= f->iov[i].len;
            continue;
        }
        if (n == IOV_MAX) {
            errno = EINVAL;
            return -1;
        }
        iov[n++] = (struct iovec){(char *)f->iov[i].base + skip, f->iov[i].len - skip};
        skip = 0;
    }
    return writev(t->fd, iov, (int)n);
}

static uint32_t tap_send(struct vh_net *n, struct vh_batch *b)
{
    const struct vh_net_tap *t = (const struct vh_net_tap *)n;

    for (uint32_t i = 0; i < b->n; i++) {
        struct vh_chain *c = &b->chain[i];
        struct frame f;
        ssize_t wrote = -1;

        c->state = VH_DONE;
        if (!frame_of(n, b, c, &f) || f.n > IOV_MAX) {
            n->malformed++;
            continue;
        }
        do
            wrote = n->big ? write_turned(t, &f) : writev(t->fd, (const struct iovec *)f.iov, (int)f.n);
        while (wrote < 0 && errno == EINTR);
        if (wrote >= 0) {
            n->frames++;
            n->bytes += f.len;
        } else if (errno == EINVAL || errno == EFAULT)
            n->malformed++; /* the kernel looks at the header and at the packet's size */
        else
            n->dropped++; /* the interface is down, or its queue is full */
    }
    return 0;
}

/* Complete the chains that hold a frame with the kernel's header. */
static void complete(struct vh_net *n, struct vh_batch *b, uint32_t count, uint64_t len)
{
    const struct vh_chain *c = &b->chain[n->from];
    uint8_t header[NUM_BUFFERS];

    if (n->big) {
        vh_gather(&b->iov[c->iov + c->n_read], c->n_write, 0, header, sizeof(header));
        turn(header);
        vh_scatter(&b->iov[c->iov + c->n_read], c->n_write, 0, header, sizeof(header));
    }
    vh_net_complete(n, b, count, len);
}

/* The writable pieces of chains from n->from on, until there is room for a frame, and memory of ours for the rest. */
static int room_for_one(const struct vh_net_tap *t, const struct vh_batch *b, struct iovec *iov, uint64_t *room)
{
    uint64_t mine;
    uint32_t n = 0;

    *room = 0;
    for (uint32_t i = t->net.from; i < b->n && *room < t->need; i++) {
        const struct vh_chain *c = &b->chain[i];
        const struct vh_iov *piece = &b->iov[c->iov + c->n_read];

        if (n + c->n_write >= READ_IOV)
            break;
        for (uint32_t k = 0; k < c->n_write; k++)
            iov[n++] = (struct iovec){piece[k].base, piece[k].len};
        *room += c->write_len;
        if (!t->net.merge)
            break;
    }
    mine = *room < t->need ? *room : t->need;
    iov[n++] = (struct iovec){t->spare + mine, t->need + 1 - mine};
    return (int)n;
}

/* A frame for which there was not enough room waits for more, if that will come. */
static bool hold(struct vh_net_tap *t, const struct vh_queue *q, const struct vh_batch *b, uint64_t room, uint32_t len)
{
    uint64_t done = 0;

    if (!t->net.merge || that_is_all(&t->net, q, b))
        return false;
    for (uint32_t i = t->net.from; i < b->n && done < room; i++)
        done += vh_gather(&b->iov[b->chain[i].iov + b->chain[i].n_read], b->chain[i].n_write, 0, t->spare + done,
                          room - done);
    t->held = len;
    return true;
}

/* Returns false if it still waits. */
static bool place_held(struct vh_net_tap *t, const struct vh_queue *q, struct vh_batch *b)
{
    struct vh_net *n = &t->net;
    struct vh_chain *c = &b->chain[n->from];
    uint32_t count = vh_net_room(n, b, n->from, t->held);
    uint64_t done = 0;

    if (!count && n->merge && !that_is_all(n, q, b))
        return false;
    for (uint32_t i = 0; i < count; i++)
        done += vh_scatter(&b->iov[c[i].iov + c[i].n_read], c[i].n_write, 0, t->spare + done, t->held - done);
    if (count)
        complete(n, b, count, t->held);
    else
        n->dropped++;
    t->held = 0;
    return true;
}

static uint32_t tap_receive(struct vh_net *n, const struct vh_queue *q, struct vh_batch *b)
{
    struct vh_net_tap *t = (struct vh_net_tap *)n;
    struct iovec iov[READ_IOV];
    uint32_t first = n->from;

    for (uint32_t tries = 0; n->from < b->n && tries < READ_TRIES; tries++) {
        uint64_t room;
        uint32_t count;
        int pieces;
        ssize_t got;

        if (t->held && !place_held(t, q, b)) {
            n->hungry = 1;
            break;
        }
        if (n->from == b->n)
            break;
        pieces = room_for_one(t, b, iov, &room);
        got = readv(t->fd, iov, pieces);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EFAULT) { /* the guest's memory has gone, and the frame with it */
            n->dropped++;
            continue;
        }
        if (got < 0) {
            if (errno != EAGAIN)
                n->path.event_fd = -1; /* the interface is gone, and would be readable for ever */
            break;
        }
        if (got < (ssize_t)(n->header + VH_NET_FRAME_MIN))
            continue;
        if (filtered(n) && !vh_net_passes(n, (const struct vh_iov *)iov, (uint32_t)pieces, n->header))
            continue; /* the next one is read over it */
        count = vh_net_room(n, b, n->from, (uint64_t)got);
        if ((uint64_t)got > room && hold(t, q, b, room, (uint32_t)got))
            continue;
        if ((uint64_t)got > room || !count)
            n->dropped++;
        else
            complete(n, b, count, (uint64_t)got);
    }
    if (n->from == b->n)
        n->hungry = 1;
    return n->from - first;
}

void vh_net_tap_send(struct vh_net_tap *t)
{
    vh_net_sends(&t->net, tap_send);
}

void vh_net_tap_receive(struct vh_net_tap *t)
{
    vh_net_receives(&t->net, tap_receive);
    t->net.path.event_fd = t->fd;
}
