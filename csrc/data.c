/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Copies between a flat buffer and the pieces of chains. */
#include <string.h>

#include "core.h"

enum direction { FROM_PIECES, TO_PIECES };

static uint64_t copy(const struct vh_iov *iov, uint32_t n, uint64_t skip, char *flat, uint64_t len, enum direction way)
{
    uint64_t done = 0;

    for (uint32_t i = 0; i < n && done < len; i++) {
        uint64_t take = iov[i].len;

        if (skip >= take) {
            skip -= take;
            continue;
        }
        take = take - skip < len - done ? take - skip : len - done;
        if (way == FROM_PIECES)
            memcpy(flat + done, (const char *)iov[i].base + skip, take);
        else
            memcpy((char *)iov[i].base + skip, flat + done, take);
        done += take;
        skip = 0;
    }
    return done;
}

/* Bytes [skip, skip + len) of the pieces, as far as they reach. Returns the number copied. */
uint64_t vh_gather(const struct vh_iov *iov, uint32_t n, uint64_t skip, void *to, uint64_t len)
{
    return copy(iov, n, skip, to, len, FROM_PIECES);
}

uint64_t vh_scatter(const struct vh_iov *iov, uint32_t n, uint64_t skip, const void *from, uint64_t len)
{
    return copy(iov, n, skip, (char *)from, len, TO_PIECES);
}

/*
 * Deal a buffer out over the writable parts of all popped chains, in order. A chain is done when it got at least
 * a byte, or has no room for any. Returns the number of bytes dealt.
 */
uint64_t vh_batch_scatter(struct vh_batch *b, const void *from, uint64_t len)
{
    uint64_t done = 0;

    for (uint32_t i = 0; i < b->n; i++) {
        struct vh_chain *c = &b->chain[i];
        uint64_t got;

        if (c->state != VH_POPPED)
            continue;
        got = vh_scatter(&b->iov[c->iov + c->n_read], c->n_write, 0, (const char *)from + done, len - done);
        if (!got && c->write_len)
            break;
        c->written = (uint32_t)got;
        c->state = VH_DONE;
        done += got;
    }
    return done;
}
