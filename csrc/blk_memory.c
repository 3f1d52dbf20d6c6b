/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* A disk in memory: copies to and from the driver's buffers. */
#include "blk.h"

enum { LINE = 64, AHEAD = 4096 };

struct job {
    struct vh_blk_request r;
    bool out;
};

/* While one request is copied, bring what the next one reads into the cache: half of its cost is waiting for it. */
static inline void fetch(const struct vh_blk *disk, const struct job *j)
{
    const struct vh_blk_request *r = &j->r;
    uint64_t here = j->out ? r->data->len - r->skip : r->len;
    const char *from = j->out ? (const char *)r->data->base + r->skip : (const char *)disk->memory + r->offset;

    here = here < r->len ? here : r->len;
    here = here < AHEAD ? here : AHEAD;
    for (uint64_t at = 0; at < here; at += LINE)
        __builtin_prefetch(from + at);
}

static inline void copy(const struct vh_blk *disk, const struct job *j)
{
    const struct vh_iov *piece = j->r.data;
    uint64_t skip = j->r.skip, left = j->r.len;
    char *disk_at = (char *)disk->memory + j->r.offset;

    for (; left; piece++) {
        uint64_t take = piece->len - skip < left ? piece->len - skip : left;
        char *guest = (char *)piece->base + skip;

        if (j->out)
            memcpy(disk_at, guest, take);
        else
            memcpy(guest, disk_at, take);
        disk_at += take;
        left -= take;
        skip = 0;
    }
}

static void run(const struct vh_blk *disk, struct job *jobs, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (i + 1 < n && jobs[i + 1].r.len)
            fetch(disk, &jobs[i + 1]);
        copy(disk, &jobs[i]);
        blk_finish(&jobs[i].r, true);
    }
}

static uint32_t serve(struct vh_path *self, struct vh_queue *q, struct vh_batch *b)
{
    struct vh_blk_path *p = (struct vh_blk_path *)self;
    const struct vh_blk *disk = p->disk;
    uint32_t flags = blk_flags(disk), left = 0, n = 0;
    struct job jobs[BLK_GROUP];

    (void)q;
    blk_prefetch(b);
    for (uint32_t i = 0; i < b->n; i++) {
        struct vh_chain *c = &b->chain[i];
        enum blk_kind kind;

        if (c->state != VH_POPPED)
            continue;
        kind = blk_parse(disk, flags, b, c, &jobs[n].r);
        if (kind <= BLK_OUT) {
            jobs[n].out = kind == BLK_OUT;
            if (++n == BLK_GROUP) {
                run(disk, jobs, n);
                n = 0;
            }
        } else if (kind == BLK_FLUSH) {
            blk_finish(&jobs[n].r, true);
        } else {
            left += vh_blk_other(disk, &jobs[n].r, kind);
        }
    }
    run(disk, jobs, n);
    return left;
}

void vh_blk_memory_init(struct vh_blk_path *p, struct vh_blk *disk)
{
    blk_init(p, disk, serve);
}
