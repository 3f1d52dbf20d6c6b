/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Merging: adjacent requests of a batch as one operation on the image. */
#ifndef VHOST_BLK_RUN_H
#define VHOST_BLK_RUN_H

#include "blk.h"

enum { BLK_MERGED = 1 << 20 }; /* bytes that several requests have in one operation */

/* Requests of the same direction, one behind the other on the disk. */
struct blk_run {
    struct vh_blk_request r[BLK_GROUP];
    uint32_t n;
    bool out;
    uint64_t end; /* where the next one has to begin */
    uint64_t len;
};

struct blk_ways {
    void (*transfer)(struct vh_blk_path *p, struct vh_batch *b, struct blk_run *run); /* n is 0 after it */
    void (*flush)(struct vh_blk_path *p, struct vh_batch *b, const struct vh_blk_request *r);
};

static blk_always_inline uint32_t blk_serve_all(struct vh_blk_path *p, struct vh_queue *q, struct vh_batch *b,
                                                struct blk_ways ways, bool big)
{
    const struct vh_blk *disk = p->disk;
    uint32_t flags = blk_flags(disk), left = 0;
    struct blk_run run;

    run.n = 0;
    blk_prefetch(b);
    for (uint32_t i = 0; i < b->n; i++) {
        struct vh_blk_request r;
        enum blk_kind kind;
        bool out;

        if (b->chain[i].state != VH_POPPED)
            continue;
        kind = blk_parse(disk, flags, b, &b->chain[i], &r, big);
        out = kind == BLK_OUT;
        if (kind > BLK_OUT && kind != BLK_FLUSH) {
            left += vh_blk_other(disk, q, b, i, &r, kind);
            continue;
        }
        if (run.n && (kind == BLK_FLUSH || out != run.out || r.offset != run.end || run.len + r.len > BLK_MERGED ||
                      run.n == BLK_GROUP))
            ways.transfer(p, b, &run);
        if (kind == BLK_FLUSH) {
            ways.flush(p, b, &r);
        } else if (!r.len) {
            blk_finish(&r, true);
        } else if (disk->align > 1 && !vh_blk_aligned(p, &r)) {
            if (run.n)
                ways.transfer(p, b, &run);
            p->transfers++;
            blk_finish(&r, vh_blk_move(p, &r, out));
        } else {
            if (!run.n)
                run.len = 0;
            run.r[run.n++] = r;
            run.out = out;
            run.end = r.offset + r.len;
            run.len += r.len;
        }
    }
    if (run.n)
        ways.transfer(p, b, &run);
    return left;
}

static blk_rare uint32_t blk_serve_big(struct vh_blk_path *p, struct vh_queue *q, struct vh_batch *b,
                                       struct blk_ways ways)
{
    return blk_serve_all(p, q, b, ways, true);
}

/* Serve a batch by operations on an image. Returns the number of chains left to Python. */
static inline uint32_t blk_serve_runs(struct vh_blk_path *p, struct vh_queue *q, struct vh_batch *b,
                                      struct blk_ways ways)
{
    return blk_is_big(q) ? blk_serve_big(p, q, b, ways) : blk_serve_all(p, q, b, ways, false);
}

#endif
