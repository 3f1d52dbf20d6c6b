/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* An image by io_uring: a batch is one submission, and what does not complete at once is in flight until reap(). */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <sys/uio.h>

#include "blk_run.h"
#include "uring.h"

enum { NONE = UINT32_MAX, ARENA = 2048 };
enum { FLUSH_AFTER = 255 }; /* kind of a slot whose write is done and goes through now */

_Static_assert(sizeof(((struct vh_blk_uring *)0)->iov) == ARENA * sizeof(struct vh_iov) && ARENA >= 2 * IOV_MAX,
               "an operation with as many pieces as possible fits when half of them are used");

/* Give completed chains back; the batch that is being served is pushed by who serves it. */
static void push(struct vh_blk_uring *u, struct vh_batch *b)
{
    if (!b || b == u->serving || !b->pending)
        return;
    vh_push(u->queue, b);
    if (!b->pending) {
        b->next = u->blk.path.idle;
        u->blk.path.idle = b;
    }
}

static void release(struct vh_blk_uring *u, uint32_t index, bool ok)
{
    struct vh_blk_slot *s = &u->slot[index];

    blk_finish(&s->r, ok);
    s->next = u->free;
    u->free = index;
    u->blk.path.flying--;
}

static uint32_t release_all(struct vh_blk_uring *u, uint32_t index, bool ok)
{
    uint32_t n = 0;

    for (; index != NONE; n++) {
        uint32_t next = u->slot[index].next;

        release(u, index, ok);
        index = next;
    }
    return n;
}

/* What the kernel would not take at all fails, as if it had been tried. */
static void submit(struct vh_blk_uring *u)
{
    uint64_t index;

    if (!vh_uring_submit(&u->ring)) {
        while (vh_uring_unqueue(&u->ring, &index)) {
            struct vh_batch *b = u->slot[index].batch;

            release_all(u, (uint32_t)index, false);
            push(u, b);
        }
    }
    u->n_iov = 0;
}

/* Fill in a read or write of the requests at the slot. */
static void prepare(struct vh_blk_uring *u, uint32_t index, struct io_uring_sqe *sqe)
{
    struct vh_blk_slot *s = &u->slot[index];
    bool out = s->kind == BLK_OUT, through;
    struct vh_blk_request r[BLK_GROUP];
    struct iovec *iov = (struct iovec *)&u->iov[u->n_iov];
    uint32_t n = 0;

    for (uint32_t i = index; i != NONE; i = u->slot[i].next)
        r[n++] = u->slot[i].r;
    n = vh_blk_pieces(r, n, s->done, iov, IOV_MAX);
    sqe->off = r->offset + s->done;
    if (n == 1) {
        sqe->opcode = out ? IORING_OP_WRITE : IORING_OP_READ;
        sqe->addr = (uintptr_t)iov->iov_base;
        sqe->len = (uint32_t)iov->iov_len;
    } else {
        u->n_iov += n; /* the kernel reads them when it takes the operation */
        sqe->opcode = out ? IORING_OP_WRITEV : IORING_OP_READV;
        sqe->addr = (uintptr_t)iov;
        sqe->len = n;
    }
    through = out && (blk_flags(u->blk.disk) & VH_BLK_WRITE_THROUGH);
    s->cached |= out && !through;
    sqe->rw_flags = through ? RWF_DSYNC : 0;
}

/* Queue the operation of the slot, from where it has come to. */
static void queue(struct vh_blk_uring *u, uint32_t index)
{
    struct vh_blk_slot *s = &u->slot[index];
    struct io_uring_sqe sqe = {.flags = IOSQE_FIXED_FILE, .user_data = index};

    if (u->n_iov > ARENA - IOV_MAX)
        submit(u);
    if (s->kind == BLK_IN || s->kind == BLK_OUT) {
        prepare(u, index, &sqe);
    } else {
        sqe.opcode = IORING_OP_FSYNC;
        sqe.fsync_flags = IORING_FSYNC_DATASYNC;
    }
    vh_uring_queue(&u->ring, &sqe);
    u->blk.calls++;
}

/* All data of the slot are moved. Returns the number of requests completed. */
static uint32_t moved(struct vh_blk_uring *u, uint32_t index)
{
    struct vh_blk_slot *s = &u->slot[index];

    if (s->cached && (blk_flags(u->blk.disk) & VH_BLK_WRITE_THROUGH)) {
        /* The driver has switched the cache off meanwhile, and perhaps flushed before this was written. */
        s->kind = FLUSH_AFTER;
        queue(u, index);
        return 0;
    }
    return release_all(u, index, true);
}

/* An operation for several requests has failed: each goes on by itself, those that are moved already are done. */
static uint32_t split(struct vh_blk_uring *u, uint32_t index)
{
    uint64_t done = u->slot[index].done, start = 0;
    bool cached = u->slot[index].cached;
    uint32_t finished = 0;

    while (index != NONE) {
        struct vh_blk_slot *s = &u->slot[index];
        uint32_t next = s->next;

        s->done = done < start ? 0 : done - start;
        start += s->r.len;
        s->next = NONE;
        s->len = s->r.len;
        s->cached = cached;
        if (s->done >= s->len)
            finished += moved(u, index);
        else
            queue(u, index);
        index = next;
    }
    return finished;
}

/* What became of an operation. Returns the number of requests completed. */
static uint32_t complete(struct vh_blk_uring *u, uint32_t index, int32_t result)
{
    struct vh_blk_slot *s = &u->slot[index];
    bool data = s->kind == BLK_IN || s->kind == BLK_OUT, again = result == -EINTR || result == -EAGAIN;

    if (data && result > 0) {
        s->done += (uint32_t)result;
        if (s->done >= s->len)
            return moved(u, index);
        again = true;
    }
    if (again) {
        queue(u, index);
        return 0;
    }
    if (data && s->next != NONE)
        return split(u, index);
    /* A transfer of nothing: the image became shorter. */
    return release_all(u, index, !data && result >= 0);
}

static uint32_t collect(struct vh_blk_uring *u)
{
    struct vh_batch *last = NULL;
    uint32_t finished = 0;
    uint64_t index;
    int32_t result;

    while (vh_uring_next(&u->ring, &index, &result)) {
        struct vh_batch *b = u->slot[index].batch;

        finished += complete(u, (uint32_t)index, result);
        if (b != last)
            push(u, last);
        last = b;
    }
    push(u, last);
    return finished;
}

static void wait_one(struct vh_blk_uring *u)
{
    submit(u);
    vh_uring_wait(&u->ring);
    collect(u);
}

/* Submit what is queued, take what is complete, until neither is there; then ask to be signalled. */
static uint32_t settle(struct vh_blk_uring *u)
{
    uint32_t finished = 0;

    for (;;) {
        submit(u);
        finished += collect(u);
        if (u->ring.queued)
            continue;
        if (!u->ring.running || vh_uring_arm(&u->ring))
            return finished;
        vh_uring_disarm(&u->ring);
    }
}

static uint32_t take_slot(struct vh_blk_uring *u, struct vh_batch *b, const struct vh_blk_request *r, uint8_t kind)
{
    uint32_t index;

    while (u->free == NONE) /* more requests than the ring has entries: only a broken driver comes so far */
        wait_one(u);
    index = u->free;
    u->free = u->slot[index].next;
    u->slot[index] = (struct vh_blk_slot){.r = *r, .batch = b, .len = r->len, .next = NONE, .kind = kind};
    r->chain->state = VH_FLYING;
    u->blk.path.flying++;
    return index;
}

static void transfer(struct vh_blk_path *p, struct vh_batch *b, struct blk_run *run)
{
    struct vh_blk_uring *u = (struct vh_blk_uring *)p;
    uint8_t kind = run->out ? BLK_OUT : BLK_IN;
    uint32_t first = take_slot(u, b, run->r, kind), last = first;

    for (uint32_t i = 1; i < run->n; i++) {
        uint32_t index = take_slot(u, b, &run->r[i], kind);

        u->slot[last].next = index;
        last = index;
    }
    u->slot[first].len = run->len;
    queue(u, first);
    p->transfers += run->n;
    run->n = 0;
}

/* Covers what was completed before it. What is in flight beside it has no order, as the specification has it. */
static void flush(struct vh_blk_path *p, struct vh_batch *b, const struct vh_blk_request *r)
{
    struct vh_blk_uring *u = (struct vh_blk_uring *)p;

    queue(u, take_slot(u, b, r, BLK_FLUSH));
}

static uint32_t serve(struct vh_path *self, struct vh_queue *q, struct vh_batch *b)
{
    struct vh_blk_uring *u = (struct vh_blk_uring *)self;
    uint32_t left;

    u->queue = q;
    u->serving = b;
    vh_uring_disarm(&u->ring);
    left = blk_serve_runs(&u->blk, q, b, (struct blk_ways){transfer, flush});
    /* Nothing may be in flight where Python discards and zeroes, nor in grants, which are given back as soon as the
     * batch is served. */
    while ((left || b->n_defer) && u->blk.path.flying)
        wait_one(u);
    settle(u);
    u->serving = NULL;
    return left;
}

static int reap(struct vh_path *self, struct vh_queue *q)
{
    struct vh_blk_uring *u = (struct vh_blk_uring *)self;

    u->queue = q;
    vh_uring_disarm(&u->ring);
    return (int)settle(u);
}

static int ready(const struct vh_path *self)
{
    return vh_uring_ready(&((const struct vh_blk_uring *)self)->ring);
}

/* Requests in flight have their places in slot[], which is n long. Returns as vh_uring_open() does. */
int vh_blk_uring_open(struct vh_blk_uring *u, struct vh_blk *disk, struct vh_blk_slot *slot, uint32_t n)
{
    int error = vh_uring_open(&u->ring, n, disk->fd);

    if (error)
        return error;
    blk_init(&u->blk, disk, serve);
    u->blk.path.reap = reap;
    u->blk.path.ready = ready;
    u->blk.path.event_fd = u->ring.event_fd;
    u->slot = slot;
    for (uint32_t i = 0; i < n; i++)
        slot[i].next = i + 1 < n ? i + 1 : NONE;
    return 0;
}

void vh_blk_uring_close(struct vh_blk_uring *u)
{
    vh_uring_close(&u->ring);
    u->blk.path.event_fd = -1;
}
