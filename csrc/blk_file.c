/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * An image by preadv2 and pwritev2, straight into and out of guest memory. A mapping of the image would save the
 * call, but not tell a bad block or a full disk from success, and serve zeroes of a file that became shorter.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <unistd.h>

#include "blk.h"

enum { MERGED = 1 << 20 }; /* bytes that one call moves for several requests */

/* Requests of a batch that one call can serve: the same direction, one behind the other on the disk. */
struct run {
    struct blk_request r[BLK_GROUP];
    uint32_t n;
    bool out;
    uint64_t end; /* where the next one has to begin */
    uint64_t len;
};

/* One system call. A single piece has calls of its own, which cost a tenth less. */
static ssize_t call(int fd, const struct iovec *iov, uint32_t n, uint64_t offset, bool out, int flags)
{
    if (flags)
        return pwritev2(fd, iov, (int)n, (off_t)offset, flags);
    if (n == 1)
        return out ? pwrite(fd, iov->iov_base, iov->iov_len, (off_t)offset)
                   : pread(fd, iov->iov_base, iov->iov_len, (off_t)offset);
    return out ? pwritev(fd, iov, (int)n, (off_t)offset) : preadv(fd, iov, (int)n, (off_t)offset);
}

/* Move the data of n requests from byte `done` on. Returns how far it came: less than `len` after an error. */
static uint64_t transfer(struct vh_blk_path *p, const struct blk_request *r, uint32_t n, uint64_t done, uint64_t len,
                         bool out, int flags)
{
    struct iovec iov[IOV_MAX];

    while (done < len) {
        uint32_t pieces = vh_blk_pieces(r, n, done, iov, IOV_MAX);
        ssize_t got = call(p->disk->fd, iov, pieces, r->offset + done, out, flags);

        p->calls++;
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return done; /* an error, or an image that became shorter */
        done += (uint64_t)got;
    }
    return done;
}

static void finish(struct vh_blk_path *p, struct run *run, uint32_t flags)
{
    int how = run->out && (flags & VH_BLK_WRITE_THROUGH) ? RWF_DSYNC : 0;
    uint64_t done = transfer(p, run->r, run->n, 0, run->len, run->out, how), start = 0;

    p->transfers += run->n;
    for (uint32_t i = 0; i < run->n; i++) {
        struct blk_request *r = &run->r[i];
        uint64_t here = done < start ? 0 : done - start;

        start += r->len;
        /* What failed for all is tried for each, so that only those fail which are to blame. */
        if (here < r->len && run->n > 1)
            here = transfer(p, r, 1, here, r->len, run->out, how);
        blk_finish(r, here >= r->len);
    }
    run->n = 0;
    run->len = 0;
}

static uint32_t serve(struct vh_path *self, struct vh_queue *q, struct vh_batch *b)
{
    struct vh_blk_path *p = (struct vh_blk_path *)self;
    uint32_t flags = blk_flags(p->disk), left = 0;
    struct run run;

    (void)q;
    run.n = 0;
    run.len = 0;
    blk_prefetch(b);
    for (uint32_t i = 0; i < b->n; i++) {
        struct vh_chain *c = &b->chain[i];
        struct blk_request r;
        enum blk_kind kind;

        if (c->state != VH_POPPED)
            continue;
        kind = blk_parse(p->disk, flags, b, c, &r);
        if (kind <= BLK_OUT) {
            bool out = kind == BLK_OUT;

            if (run.n && (out != run.out || r.offset != run.end || run.len + r.len > MERGED || run.n == BLK_GROUP))
                finish(p, &run, flags);
            run.r[run.n++] = r;
            run.out = out;
            run.end = r.offset + r.len;
            run.len += r.len;
        } else if (kind == BLK_FLUSH) {
            /* It covers all writes that were completed before it; those before it in the batch are in the file too. */
            finish(p, &run, flags);
            blk_finish(&r, fdatasync(p->disk->fd) == 0);
        } else {
            left += vh_blk_other(p->disk, &r, kind);
        }
    }
    finish(p, &run, flags);
    return left;
}

void vh_blk_file_init(struct vh_blk_path *p, struct vh_blk *disk)
{
    blk_init(p, disk, serve);
}
