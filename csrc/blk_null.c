/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* A disk that keeps nothing: reads leave the driver's buffer as it is. What all else costs, it shows. */
#include "blk.h"

static uint32_t serve(struct vh_path *self, struct vh_queue *q, struct vh_batch *b)
{
    struct vh_blk_path *p = (struct vh_blk_path *)self;
    const struct vh_blk *disk = p->disk;
    uint32_t flags = blk_flags(disk), left = 0;

    (void)q;
    blk_prefetch(b);
    for (uint32_t i = 0; i < b->n; i++) {
        struct vh_chain *c = &b->chain[i];
        struct vh_blk_request r;
        enum blk_kind kind;

        if (c->state != VH_POPPED)
            continue;
        kind = blk_parse(disk, flags, b, c, &r);
        if (kind <= BLK_FLUSH)
            blk_finish(&r, true);
        else
            left += vh_blk_other(disk, &r, kind);
    }
    return left;
}

void vh_blk_null_init(struct vh_blk_path *p, struct vh_blk *disk)
{
    blk_init(p, disk, serve);
}
