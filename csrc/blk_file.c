/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* An image by pread and pwrite, straight into and out of guest memory. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <unistd.h>

#include "blk_run.h"

/* One system call. A single piece has calls of its own, which cost a tenth less. */
static ssize_t call(int fd, const struct iovec *iov, uint32_t n, uint64_t offset, bool out, bool through)
{
    if (through)
        return pwritev2(fd, iov, (int)n, (off_t)offset, RWF_DSYNC);
    if (n == 1)
        return out ? pwrite(fd, iov->iov_base, iov->iov_len, (off_t)offset)
                   : pread(fd, iov->iov_base, iov->iov_len, (off_t)offset);
    return out ? pwritev(fd, iov, (int)n, (off_t)offset) : preadv(fd, iov, (int)n, (off_t)offset);
}

/* Move the data of n requests from byte `done` on. Returns how far it came: less than `len` after an error. */
static uint64_t move(struct vh_blk_path *p, const struct vh_blk_request *r, uint32_t n, uint64_t done, uint64_t len,
                     bool out, bool through)
{
    struct iovec iov[IOV_MAX];

    while (done < len) {
        uint32_t pieces = vh_blk_pieces(r, n, done, iov, IOV_MAX);
        ssize_t got = call(p->disk->fd, iov, pieces, r->offset + done, out, through);

        p->calls++;
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break; /* an error, or an image that became shorter */
        done += (uint64_t)got;
    }
    return done;
}

/* The same for one request, by way of memory that is aligned. */
static uint64_t bounce(struct vh_blk_path *p, const struct vh_blk_request *r, bool out, bool through)
{
    uint64_t done = 0;

    while (done < r->len) {
        uint64_t take = r->len - done < p->bounce_size ? r->len - done : p->bounce_size;
        struct iovec iov = {p->bounce, take};
        ssize_t got;

        if (out)
            vh_gather(r->data, UINT32_MAX, r->skip + done, p->bounce, take);
        got = call(p->disk->fd, &iov, 1, r->offset + done, out, through);
        p->calls++;
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        if (!out)
            vh_scatter(r->data, UINT32_MAX, r->skip + done, p->bounce, (uint64_t)got);
        done += (uint64_t)got;
    }
    return done;
}

/* Whether what was written without going through is where it has to be: the driver may have switched the cache off
 * meanwhile, and flushed before this was written. */
static bool stable(const struct vh_blk *disk, bool out, bool through)
{
    return !out || through || !(blk_flags(disk) & VH_BLK_WRITE_THROUGH) || fdatasync(disk->fd) == 0;
}

/* One request from byte `done` on. */
static bool move_one(struct vh_blk_path *p, const struct vh_blk_request *r, uint64_t done, bool out)
{
    bool through = out && (blk_flags(p->disk) & VH_BLK_WRITE_THROUGH);

    if (p->bounce && !vh_blk_aligned(p, r))
        done = bounce(p, r, out, through);
    else
        done = move(p, r, 1, done, r->len, out, through);
    return done == r->len && stable(p->disk, out, through);
}

bool vh_blk_move(struct vh_blk_path *p, const struct vh_blk_request *r, bool out)
{
    return move_one(p, r, 0, out);
}

static void transfer(struct vh_blk_path *p, struct vh_batch *b, struct blk_run *run)
{
    bool through = run->out && (blk_flags(p->disk) & VH_BLK_WRITE_THROUGH);
    uint64_t done = move(p, run->r, run->n, 0, run->len, run->out, through), start = 0;
    bool good = stable(p->disk, run->out, through);

    (void)b;
    p->transfers += run->n;
    for (uint32_t i = 0; i < run->n; i++) {
        struct vh_blk_request *r = &run->r[i];
        uint64_t here = done < start ? 0 : done - start;

        start += r->len;
        /* What failed for all is tried for each, so that only those fail that are to blame. */
        blk_finish(r, (here >= r->len || (run->n > 1 && move_one(p, r, here, run->out))) && good);
    }
    run->n = 0;
}

/* Covers what was completed before it, as it has to, and what is before it in the batch. */
static void flush(struct vh_blk_path *p, struct vh_batch *b, const struct vh_blk_request *r)
{
    (void)b;
    p->calls++;
    blk_finish(r, fdatasync(p->disk->fd) == 0);
}

static uint32_t serve(struct vh_path *self, struct vh_queue *q, struct vh_batch *b)
{
    return blk_serve_runs((struct vh_blk_path *)self, q, b, (struct blk_ways){transfer, flush});
}

void vh_blk_file_init(struct vh_blk_path *p, struct vh_blk *disk)
{
    blk_init(p, disk, serve);
}
