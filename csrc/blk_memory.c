/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * A disk in memory: copies to and from the driver's buffers.
 *
 * An image on a file system in memory is mapped, which takes half the time of system calls. Where such a mapping
 * faults, because the file became shorter or there is no room for a page, the guard puts zero pages there, and the
 * rest of the last page of a file takes anything; so copies count only if by then the guard has seen nothing and the
 * file is as long as ever, and are done again by system calls otherwise. Images on disks are not mapped: there every
 * page that is not in memory would hold up the whole queue.
 */
#include <unistd.h>

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

/* Whether the copies of a mapped image since the last look were copies of the image. */
static bool whole(const struct vh_blk *disk)
{
    return !vh_guard_hit(disk->guard) && lseek(disk->fd, 0, SEEK_END) >= (off_t)(disk->capacity * BLK_SECTOR);
}

static void run(struct vh_blk_path *p, struct job *jobs, uint32_t n, bool through)
{
    const struct vh_blk *disk = p->disk;
    bool mapped = !vh_guard_hit(disk->guard), good;

    for (uint32_t i = 0; i < n; i++) {
        if (i + 1 < n && jobs[i + 1].r.len)
            fetch(disk, &jobs[i + 1]);
        if (mapped)
            copy(disk, &jobs[i]);
        if (!disk->guard)
            blk_finish(&jobs[i].r, true);
    }
    if (!disk->guard || !n)
        return;
    good = mapped && whole(disk);
    p->transfers += n;
    /* The driver may have switched the cache off meanwhile, and flushed before all was copied. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    through = through || (blk_flags(disk) & VH_BLK_WRITE_THROUGH);
    /* What has to go through to the file does so by itself, and so does what may not have reached it. */
    for (uint32_t i = 0; i < n; i++)
        blk_finish(&jobs[i].r, (good && !(through && jobs[i].out)) || vh_blk_move(p, &jobs[i].r, jobs[i].out));
}

static blk_always_inline uint32_t serve_all(struct vh_blk_path *p, struct vh_queue *q, struct vh_batch *b, bool big)
{
    const struct vh_blk *disk = p->disk;
    uint32_t flags = blk_flags(disk), left = 0, n = 0;
    bool through = flags & VH_BLK_WRITE_THROUGH;
    struct job jobs[BLK_GROUP];

    blk_prefetch(b);
    for (uint32_t i = 0; i < b->n; i++) {
        struct vh_chain *c = &b->chain[i];
        enum blk_kind kind;

        if (c->state != VH_POPPED)
            continue;
        kind = blk_parse(disk, flags, b, c, &jobs[n].r, big);
        if (kind <= BLK_OUT) {
            jobs[n].out = kind == BLK_OUT;
            if (++n == BLK_GROUP) {
                run(p, jobs, n, through);
                n = 0;
            }
        } else if (kind == BLK_FLUSH) {
            struct vh_blk_request flush = jobs[n].r;

            run(p, jobs, n, through);
            n = 0;
            blk_finish(&flush, !disk->guard || fdatasync(disk->fd) == 0);
        } else {
            left += vh_blk_other(disk, q, b, i, &jobs[n].r, kind);
        }
    }
    run(p, jobs, n, through);
    return left;
}

static blk_rare uint32_t serve_big(struct vh_blk_path *p, struct vh_queue *q, struct vh_batch *b)
{
    return serve_all(p, q, b, true);
}

static uint32_t serve(struct vh_path *self, struct vh_queue *q, struct vh_batch *b)
{
    struct vh_blk_path *p = (struct vh_blk_path *)self;

    return blk_is_big(q) ? serve_big(p, q, b) : serve_all(p, q, b, false);
}

void vh_blk_memory_init(struct vh_blk_path *p, struct vh_blk *disk)
{
    blk_init(p, disk, serve);
}
