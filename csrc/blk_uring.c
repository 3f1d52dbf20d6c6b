/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * An image by io_uring (Linux, include/uapi/linux/io_uring.h), by bare system calls: the file is registered, a batch
 * is one submission, and what does not complete at once is in flight until reap().
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/io_uring.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "blk_run.h"

enum { NONE = UINT32_MAX, ARENA = 2048 };
enum { FLUSH_AFTER = 255 }; /* kind of a slot whose write is done and goes through now */

_Static_assert(sizeof(((struct vh_blk_uring *)0)->iov) == ARENA * sizeof(struct vh_iov) && ARENA >= 2 * IOV_MAX,
               "an operation with as many pieces as possible fits when half of them are used");

static bool completions(const struct vh_blk_uring *u)
{
    return __atomic_load_n(u->cq_tail, __ATOMIC_ACQUIRE) != *u->cq_head;
}

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

static int enter(struct vh_blk_uring *u, uint32_t submit, uint32_t wait, uint32_t flags)
{
    return (int)syscall(SYS_io_uring_enter, u->ring_fd, submit, wait, flags, NULL, 0);
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
static void refuse(struct vh_blk_uring *u)
{
    uint32_t head = __atomic_load_n(u->sq_head, __ATOMIC_ACQUIRE), tail = *u->sq_tail;

    __atomic_store_n(u->sq_tail, head, __ATOMIC_RELEASE);
    u->queued = 0;
    for (; head != tail; head++) {
        uint32_t index = (uint32_t)((struct io_uring_sqe *)u->sqes)[head & u->sq_mask].user_data;
        struct vh_batch *b = u->slot[index].batch;

        release_all(u, index, false);
        push(u, b);
    }
}

static void submit(struct vh_blk_uring *u)
{
    while (u->queued) {
        int n = enter(u, u->queued, 0, 0);

        if (n > 0) {
            u->queued -= (uint32_t)n;
            u->running += (uint32_t)n;
        } else if (n < 0 && errno == EAGAIN && u->running) {
            enter(u, 0, 1, IORING_ENTER_GETEVENTS); /* until there is memory again */
        } else if (n == 0 || errno != EINTR) {
            refuse(u);
        }
    }
    u->n_iov = 0;
}

/* Fill in a read or write of the requests at the slot. */
static void prepare(struct vh_blk_uring *u, uint32_t index, struct io_uring_sqe *sqe)
{
    struct vh_blk_slot *s = &u->slot[index];
    bool out = s->kind == BLK_OUT;
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
    s->through = out && (blk_flags(u->blk.disk) & VH_BLK_WRITE_THROUGH);
    sqe->rw_flags = s->through ? RWF_DSYNC : 0;
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
    ((struct io_uring_sqe *)u->sqes)[*u->sq_tail & u->sq_mask] = sqe;
    __atomic_store_n(u->sq_tail, *u->sq_tail + 1, __ATOMIC_RELEASE);
    u->queued++;
    u->blk.calls++;
}

/* An operation for several requests has failed: each goes on by itself, those that are moved already are done. */
static uint32_t split(struct vh_blk_uring *u, uint32_t index)
{
    uint64_t done = u->slot[index].done, start = 0;
    uint32_t finished = 0;

    while (index != NONE) {
        struct vh_blk_slot *s = &u->slot[index];
        uint32_t next = s->next;

        s->done = done < start ? 0 : done - start;
        start += s->r.len;
        s->next = NONE;
        s->len = s->r.len;
        if (s->done >= s->len) {
            release(u, index, true);
            finished++;
        } else {
            queue(u, index);
        }
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
        again = s->done < s->len;
        if (!again && s->kind == BLK_OUT && !s->through && (blk_flags(u->blk.disk) & VH_BLK_WRITE_THROUGH)) {
            /* The driver has switched the cache off meanwhile, and perhaps flushed before this was written. */
            s->kind = FLUSH_AFTER;
            again = true;
        }
    }
    if (again) {
        queue(u, index);
        return 0;
    }
    if (data && result <= 0 && s->next != NONE)
        return split(u, index);
    /* A read of nothing: the image became shorter. */
    return release_all(u, index, data ? result > 0 : result >= 0);
}

static uint32_t collect(struct vh_blk_uring *u)
{
    struct vh_batch *last = NULL;
    uint32_t finished = 0;

    while (completions(u)) {
        const struct io_uring_cqe *cqe = (const struct io_uring_cqe *)u->cqes + (*u->cq_head & u->cq_mask);
        uint32_t index = (uint32_t)cqe->user_data;
        struct vh_batch *b = u->slot[index].batch;
        int32_t result = cqe->res;

        __atomic_store_n(u->cq_head, *u->cq_head + 1, __ATOMIC_RELEASE);
        u->running--;
        finished += complete(u, index, result);
        if (b != last)
            push(u, last);
        last = b;
    }
    push(u, last);
    return finished;
}

/* Completions are looked for anyway: let none of them signal. */
static void disarm(struct vh_blk_uring *u)
{
    uint64_t count;

    if (!u->armed)
        return;
    u->armed = 0;
    __atomic_store_n(u->cq_flags, IORING_CQ_EVENTFD_DISABLED, __ATOMIC_RELAXED);
    if (read(u->blk.path.event_fd, &count, sizeof(count)) < 0)
        return; /* none has */
}

/* From here on every completion signals. Returns false if there is one already, which may not have. */
static bool arm(struct vh_blk_uring *u)
{
    u->armed = 1;
    __atomic_store_n(u->cq_flags, 0, __ATOMIC_RELAXED);
    fence();
    return !completions(u);
}

/* Wait for the kernel to complete something. */
static void wait_one(struct vh_blk_uring *u)
{
    submit(u);
    if (u->running)
        enter(u, 0, 1, IORING_ENTER_GETEVENTS);
}

/* Submit what is queued, take what is complete, until neither is there; then ask to be signalled. */
static uint32_t settle(struct vh_blk_uring *u)
{
    uint32_t finished = 0;

    for (;;) {
        submit(u);
        finished += collect(u);
        if (u->queued)
            continue;
        if (!u->running || arm(u))
            return finished;
        disarm(u);
    }
}

static uint32_t take_slot(struct vh_blk_uring *u, struct vh_batch *b, const struct vh_blk_request *r, uint8_t kind)
{
    uint32_t index;

    while (u->free == NONE) { /* more requests than the ring has entries: only a broken driver comes so far */
        wait_one(u);
        collect(u);
    }
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
    disarm(u);
    left = blk_serve_runs(&u->blk, b, (struct blk_ways){transfer, flush});
    /* Nothing may be in flight where Python discards and zeroes, nor in grants, which are given back as soon as the
     * batch is served. */
    while ((left || b->n_defer) && u->blk.path.flying) {
        wait_one(u);
        collect(u);
    }
    settle(u);
    u->serving = NULL;
    return left;
}

static int reap(struct vh_path *self, struct vh_queue *q)
{
    struct vh_blk_uring *u = (struct vh_blk_uring *)self;

    u->queue = q;
    disarm(u);
    return (int)settle(u);
}

static int ready(const struct vh_path *self)
{
    return completions((const struct vh_blk_uring *)self);
}

static void *map(struct vh_blk_uring *u, uint64_t size, off_t what)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, u->ring_fd, what);

    return at == MAP_FAILED ? NULL : at;
}

static bool map_rings(struct vh_blk_uring *u, const struct io_uring_params *p)
{
    char *sq, *cq;
    uint32_t *array;

    u->sq_size = p->sq_off.array + p->sq_entries * sizeof(uint32_t);
    u->cq_size = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);
    u->sqes_size = p->sq_entries * sizeof(struct io_uring_sqe);
    u->sq = sq = map(u, u->sq_size, IORING_OFF_SQ_RING);
    u->cq = cq = map(u, u->cq_size, IORING_OFF_CQ_RING);
    u->sqes = map(u, u->sqes_size, IORING_OFF_SQES);
    if (!u->sq || !u->cq || !u->sqes)
        return false;
    u->sq_head = (uint32_t *)(sq + p->sq_off.head);
    u->sq_tail = (uint32_t *)(sq + p->sq_off.tail);
    u->sq_mask = *(uint32_t *)(sq + p->sq_off.ring_mask);
    array = (uint32_t *)(sq + p->sq_off.array);
    for (uint32_t i = 0; i < p->sq_entries; i++)
        array[i] = i;
    u->cq_head = (uint32_t *)(cq + p->cq_off.head);
    u->cq_tail = (uint32_t *)(cq + p->cq_off.tail);
    u->cq_mask = *(uint32_t *)(cq + p->cq_off.ring_mask);
    u->cq_flags = (uint32_t *)(cq + p->cq_off.flags);
    u->cqes = cq + p->cq_off.cqes;
    return true;
}

static int register_with(struct vh_blk_uring *u, uint32_t what, int32_t fd)
{
    return (int)syscall(SYS_io_uring_register, u->ring_fd, what, &fd, 1);
}

/*
 * Make a ring for up to n requests in flight; slot[] has room for them. Returns 0, or -errno where the kernel has
 * none for us: ENOSYS, EPERM (forbidden), ENOTSUP (before Linux 5.8).
 */
int vh_blk_uring_open(struct vh_blk_uring *u, struct vh_blk *disk, struct vh_blk_slot *slot, uint32_t n)
{
    struct io_uring_params params = {.flags = IORING_SETUP_CLAMP};
    int error;

    blk_init(&u->blk, disk, serve);
    u->blk.path.reap = reap;
    u->blk.path.ready = ready;
    u->slot = slot;
    for (uint32_t i = 0; i < n; i++)
        slot[i].next = i + 1 < n ? i + 1 : NONE;
    u->ring_fd = (int)syscall(SYS_io_uring_setup, n, &params);
    if (u->ring_fd < 0)
        return -errno;
    errno = ENOTSUP;
    if (!(params.features & IORING_FEAT_SUBMIT_STABLE) || !params.cq_off.flags || params.sq_entries < n)
        goto fail;
    if (!map_rings(u, &params))
        goto fail;
    __atomic_store_n(u->cq_flags, IORING_CQ_EVENTFD_DISABLED, __ATOMIC_RELAXED);
    u->blk.path.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (u->blk.path.event_fd < 0 || register_with(u, IORING_REGISTER_EVENTFD, u->blk.path.event_fd) ||
        register_with(u, IORING_REGISTER_FILES, disk->fd))
        goto fail;
    return 0;
fail:
    error = errno;
    vh_blk_uring_close(u);
    return -error;
}

/* Nothing should be in flight; if something is, the kernel has finished with guest memory after this. */
void vh_blk_uring_close(struct vh_blk_uring *u)
{
    while (u->running && enter(u, 0, u->running, IORING_ENTER_GETEVENTS) < 0 && errno == EINTR)
        ;
    u->running = 0;
    if (u->sq)
        munmap(u->sq, u->sq_size);
    if (u->cq)
        munmap(u->cq, u->cq_size);
    if (u->sqes)
        munmap(u->sqes, u->sqes_size);
    if (u->blk.path.event_fd >= 0)
        close(u->blk.path.event_fd);
    close(u->ring_fd);
    u->sq = u->cq = u->sqes = NULL;
    u->blk.path.event_fd = u->ring_fd = -1;
}
