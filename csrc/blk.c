/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* What the data paths of virtio-blk have in common and is not needed for every request. */
#include "blk.h"

uint32_t vh_blk_other(const struct vh_blk *disk, struct vh_queue *q, struct vh_batch *b, uint32_t i,
                      const struct vh_blk_request *r, enum blk_kind kind)
{
    if (kind == BLK_LONG) {
        vh_put_back(q, b, i ? i : 1);
        return !i;
    }
    if (kind == BLK_PYTHON)
        return 1;
    if (kind == BLK_GET_ID)
        vh_scatter(r->data, r->chain->n_write, 0, disk->serial, r->len < BLK_ID_SIZE ? r->len : BLK_ID_SIZE);
    blk_finish(r, kind != BLK_REFUSED);
    return 0;
}

bool vh_blk_aligned(const struct vh_blk_path *p, const struct vh_blk_request *r)
{
    const struct vh_blk *disk = p->disk;
    uint64_t skip = r->skip, left = r->len;

    for (const struct vh_iov *piece = r->data; left; piece++) {
        uint64_t take = piece->len - skip < left ? piece->len - skip : left;

        /* Linux before 6.18 takes no piece of a block, wherever it is. */
        if ((((uintptr_t)piece->base + skip) & (disk->align - 1)) || (take & (disk->block - 1)))
            return false;
        left -= take;
        skip = 0;
    }
    return true;
}

uint32_t vh_blk_pieces(const struct vh_blk_request *r, uint32_t count, uint64_t done, struct iovec *to, uint32_t max)
{
    uint32_t n = 0;

    for (; count; count--, r++) {
        const struct vh_iov *piece = r->data;
        uint64_t skip = r->skip + done, left = r->len - done;

        if (done >= r->len) {
            done -= r->len;
            continue;
        }
        done = 0;
        for (; left && n < max; piece++) {
            uint64_t take = piece->len;

            if (skip >= take) {
                skip -= take;
                continue;
            }
            take = take - skip < left ? take - skip : left;
            to[n++] = (struct iovec){(char *)piece->base + skip, take};
            left -= take;
            skip = 0;
        }
    }
    return n;
}
