/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* What the data paths of virtio-blk share: requests and their answers (virtio 1.3, 5.2.6). */
#ifndef VHOST_BLK_H
#define VHOST_BLK_H

#include <string.h>
#include <sys/uio.h>

#include "core.h"

/* Loops over requests are compiled once for each byte order, and chosen once for a batch. */
#define blk_always_inline inline __attribute__((always_inline))
#define blk_rare __attribute__((noinline, cold))

enum { BLK_SECTOR = 512, BLK_HEADER = 16, BLK_ID_SIZE = 20 };
enum { BLK_OK = 0, BLK_IOERR = 1 }; /* status */
enum { BLK_GROUP = 64 };            /* requests that are looked at together */

enum blk_kind {
    BLK_IN = 0,
    BLK_OUT = 1,
    BLK_FLUSH = 4,
    BLK_GET_ID = 8,
    BLK_DISCARD = 11,
    BLK_WRITE_ZEROES = 13,
    BLK_REFUSED = 256, /* beyond the end, not in sectors, or a write to what is read-only */
    BLK_PYTHON = 257,  /* malformed or unknown: the device's process() has the words for it */
    BLK_LONG = 258,    /* process() serves it too, in steps: it may take long */
};

static inline void blk_init(struct vh_blk_path *p, struct vh_blk *disk,
                            uint32_t (*serve)(struct vh_path *, struct vh_queue *, struct vh_batch *))
{
    *p = (struct vh_blk_path){.path = {.serve = serve, .event_fd = -1}, .disk = disk};
}

/* Whether requests are those of a legacy driver on a big-endian machine. */
static inline bool blk_is_big(const struct vh_queue *q)
{
    return __builtin_expect(q->kind == VH_SPLIT_BIG, 0);
}

static inline uint32_t blk_flags(const struct vh_blk *disk)
{
    return __atomic_load_n(&disk->flags, __ATOMIC_RELAXED);
}

/* Headers and status bytes are where each cache miss costs as much as all the rest: ask for them early. */
static inline void blk_prefetch(const struct vh_batch *b)
{
    for (uint32_t i = 0; i < b->n; i++) {
        const struct vh_chain *c = &b->chain[i];
        const struct vh_iov *first = &b->iov[c->iov], *last = first + c->n_read + c->n_write - 1;

        if (c->state == VH_POPPED && c->n_read && c->n_write) {
            __builtin_prefetch(first->base);
            __builtin_prefetch((const char *)last->base + last->len - 1, 1);
        }
    }
}

static inline bool blk_header(const struct vh_iov *iov, uint32_t n, uint64_t header[2])
{
    struct half {
        uint64_t v;
    } __attribute__((packed, may_alias));
    const volatile struct half *h = (const volatile struct half *)iov->base;

    if (__builtin_expect(!n || iov->len < BLK_HEADER, 0))
        return vh_gather(iov, n, 0, header, BLK_HEADER) == BLK_HEADER;
    header[0] = h[0].v;
    header[1] = h[1].v;
    return true;
}

/*
 * Understand one request, whose fields are in the byte order of its ring. The header is read once; the pieces of the
 * batch stay as they are. For BLK_FLUSH and BLK_REFUSED only chain and status count, for BLK_GET_ID also data and len,
 * for BLK_PYTHON and BLK_LONG nothing.
 */
static blk_always_inline enum blk_kind blk_parse(const struct vh_blk *disk, uint32_t flags, const struct vh_batch *b,
                                                 struct vh_chain *c, struct vh_blk_request *r, bool big)
{
    const struct vh_iov *first = &b->iov[c->iov], *last = first + c->n_read + c->n_write - 1;
    uint64_t header[2], sector;
    uint32_t type;

    if (!c->n_write || !blk_header(first, c->n_read, header))
        return BLK_PYTHON;
    /* The other half is reserved. */
    type = big ? (uint32_t)(be64toh(header[0]) >> 32) : (uint32_t)le64toh(header[0]);
    sector = big ? be64toh(header[1]) : le64toh(header[1]);
    r->chain = c;
    r->status = (uint8_t *)last->base + last->len - 1; /* the last writable byte */
    r->data = first + c->n_read;
    r->skip = 0;
    r->len = c->write_len - 1;
    if (type == BLK_OUT) {
        if (c->write_len != 1)
            return BLK_PYTHON;
        r->len = c->read_len - BLK_HEADER;
        for (r->data = first, r->skip = BLK_HEADER; r->skip && r->skip >= r->data->len; r->data++)
            r->skip -= r->data->len;
    } else if (type != BLK_IN) {
        if (type == BLK_DISCARD || type == BLK_WRITE_ZEROES)
            return BLK_LONG;
        return type == BLK_FLUSH || type == BLK_GET_ID ? (enum blk_kind)type : BLK_PYTHON;
    } else if (c->read_len != BLK_HEADER) {
        return BLK_PYTHON;
    }
    if (((r->len | sector * BLK_SECTOR) & (disk->block - 1)) || sector > disk->capacity ||
        r->len / BLK_SECTOR > disk->capacity - sector ||
        (type == BLK_OUT && (flags & VH_BLK_READ_ONLY)))
        return BLK_REFUSED;
    r->offset = sector * BLK_SECTOR;
    return (enum blk_kind)type;
}

/* Answer a request; vh_push() returns it to the driver. */
static inline void blk_finish(const struct vh_blk_request *r, bool ok)
{
    *r->status = ok ? BLK_OK : BLK_IOERR;
    r->chain->written = r->chain->write_len < UINT32_MAX ? (uint32_t)r->chain->write_len : UINT32_MAX;
    r->chain->state = VH_DONE;
}

/*
 * Answer what is neither a transfer nor a flush, the request of chain i. Returns the number of requests left to Python.
 * One that may take long ends the batch: it is the only one in it, or goes back to the ring with what is behind it.
 */
uint32_t vh_blk_other(const struct vh_blk *disk, struct vh_queue *q, struct vh_batch *b, uint32_t i,
                      const struct vh_blk_request *r, enum blk_kind kind);

/* Whether the kernel takes the data where they are. */
bool vh_blk_aligned(const struct vh_blk_path *p, const struct vh_blk_request *r);

/* Move the data of one request to or from the image; false after an error, or where the image has become shorter. */
bool vh_blk_move(struct vh_blk_path *p, const struct vh_blk_request *r, bool out);

/*
 * The data of count requests, one after the other, without the first `done` bytes of it, as far as `max` pieces
 * reach. Returns the number of pieces.
 */
uint32_t vh_blk_pieces(const struct vh_blk_request *r, uint32_t count, uint64_t done, struct iovec *to, uint32_t max);

#endif
