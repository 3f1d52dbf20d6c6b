/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* A disk that keeps nothing: reads leave the driver's buffer as it is. What all else costs, it shows. */
#include "blk.h"

static blk_always_inline uint32_t serve_all(const struct vh_blk *disk, struct vh_queue *q, struct vh_batch *b,
                                          bool big)
{
    uint32_t flags = blk_flags(disk), left = 0;

    blk_prefetch(b);
    for (uint32_t i = 0; i < b->n; i++) {
        struct vh_chain *c = &b->chain[i];
        struct vh_blk_request r;
        enum blk_kind kind;

        if (c->state != VH_POPPED)
            continue;
        kind = blk_parse(disk, flags, b, c, &r, big);
        if (kind <= BLK_FLUSH)
            blk_finish(&r, true);
        else
            left += vh_blk_other(disk, q, b, i, &r, kind);
    }
    return left;
}

static blk_rare uint32_t serve_big(const struct vh_blk *disk, struct vh_queue *q, struct vh_batch *b)
{
    return serve_all(disk, q, b, true);
}

static uint32_t serve(struct vh_path *self, struct vh_queue *q, struct vh_batch *b)
{
    const struct vh_blk *disk = ((const struct vh_blk_path *)self)->disk;

    return blk_is_big(q) ? serve_big(disk, q, b) : serve_all(disk, q, b, false);
}

void vh_blk_null_init(struct vh_blk_path *p, struct vh_blk *disk)
{
    blk_init(p, disk, serve);
}
