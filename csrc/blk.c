/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* The data path of virtio-blk (virtio 1.3, 5.2.6): reads and writes of a whole batch; the rest is left to Python. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <sys/uio.h>

#include "core.h"

_Static_assert(sizeof(struct vh_iov) == sizeof(struct iovec) &&
                   offsetof(struct vh_iov, len) == offsetof(struct iovec, iov_len),
               "vh_iov is handed to the kernel as iovec");

enum { BLK_IN = 0, BLK_OUT = 1 };
enum { STATUS_OK = 0, STATUS_IOERR = 1 };
enum { HEADER = 16, SECTOR = 512 };

/* Move all bytes of the pieces to or from the file; the pieces are used up. */
static bool transfer(const struct vh_blk *disk, struct iovec *iov, uint32_t n, uint64_t offset, bool out)
{
    int flags = out && (disk->flags & VH_BLK_WRITE_THROUGH) ? RWF_DSYNC : 0;

    while (n) {
        int count = n < IOV_MAX ? (int)n : IOV_MAX;
        ssize_t got = out ? pwritev2(disk->fd, iov, count, (off_t)offset, flags)
                          : preadv2(disk->fd, iov, count, (off_t)offset, 0);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false; /* an error, or an image that became shorter */
        offset += (uint64_t)got;
        while (n && (size_t)got >= iov->iov_len) {
            got -= (ssize_t)iov->iov_len;
            iov++;
            n--;
        }
        if (got) {
            iov->iov_base = (char *)iov->iov_base + got;
            iov->iov_len -= (size_t)got;
        }
    }
    return true;
}

/* Serve one read or write; false leaves the chain as it was, for Python. */
static bool serve(struct vh_batch *b, struct vh_chain *c, const struct vh_blk *disk)
{
    struct vh_iov *readable = &b->iov[c->iov], *writable = readable + c->n_read;
    struct vh_iov *data, *last;
    uint32_t n;
    uint64_t len;
    bool ok, out;
    uint8_t *status;
    struct {
        uint32_t type, reserved;
        uint64_t sector;
    } header;

    if (vh_gather(readable, c->n_read, 0, &header, HEADER) != HEADER || !c->write_len)
        return false;
    header.type = le32toh(header.type);
    header.sector = le64toh(header.sector);
    out = header.type == BLK_OUT;
    if (header.type == BLK_IN ? c->read_len != HEADER : !out || c->write_len != 1)
        return false;

    /* The status is the last writable byte; take it off the data. */
    last = writable + c->n_write - 1;
    status = (uint8_t *)last->base + --last->len;
    if (out) {
        uint64_t skip = HEADER;

        for (data = readable, n = c->n_read; n && skip >= data->len; n--)
            skip -= data++->len;
        if (n) {
            data->base = (char *)data->base + skip;
            data->len -= skip;
        }
        len = c->read_len - HEADER;
    } else {
        data = writable;
        n = last->len ? c->n_write : c->n_write - 1;
        len = c->write_len - 1;
    }
    ok = len % SECTOR == 0 && header.sector <= disk->capacity && len / SECTOR <= disk->capacity - header.sector &&
         !(out && (disk->flags & VH_BLK_READ_ONLY)) &&
         transfer(disk, (struct iovec *)data, n, header.sector * SECTOR, out);
    *status = ok ? STATUS_OK : STATUS_IOERR;
    c->written = (uint32_t)c->write_len;
    c->state = VH_DONE;
    return true;
}

/* Serve the reads and writes of a batch. Returns the number of chains that are left to Python. */
uint32_t vh_blk_run(struct vh_batch *b, const struct vh_blk *disk)
{
    uint32_t left = 0;

    for (uint32_t i = 0; i < b->n; i++) {
        struct vh_chain *c = &b->chain[i];

        if (c->state == VH_POPPED && !serve(b, c, disk))
            left++;
    }
    return left;
}
