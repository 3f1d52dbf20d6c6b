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

/* The next bytes of a chain's readable part. Returns the number copied, or -1: the chain is the driver's again. */
int64_t vh_chain_read(const struct vh_batch *b, const struct vh_chain *c, uint64_t skip, void *to, uint64_t len)
{
    if (c->state != VH_POPPED)
        return -1;
    return (int64_t)vh_gather(&b->iov[c->iov], c->n_read, skip, to, len);
}

int64_t vh_chain_write(const struct vh_batch *b, struct vh_chain *c, uint64_t skip, const char *from, uint64_t len)
{
    uint64_t n, end;

    if (c->state != VH_POPPED)
        return -1;
    n = vh_scatter(&b->iov[c->iov + c->n_read], c->n_write, skip, from, len);
    end = skip + n < UINT32_MAX ? skip + n : UINT32_MAX;
    if (n && end > c->written)
        c->written = (uint32_t)end;
    return (int64_t)n;
}

/* It is complete. Returns -1 if it was before. */
int vh_chain_done(struct vh_chain *c)
{
    if (c->state != VH_POPPED)
        return -1;
    c->state = VH_DONE;
    return 0;
}

/*
 * Deal a buffer out over the writable parts of all popped chains, in order: to each what sizes[] says, NULL: all that
 * there is room for. A chain is done when it got that, or at least a byte, or has no room for any. Returns the number
 * of bytes dealt.
 */
uint64_t vh_batch_scatter(struct vh_batch *b, const void *from, uint64_t len, const uint64_t *sizes)
{
    uint64_t done = 0;

    for (uint32_t i = 0; i < b->n; i++) {
        struct vh_chain *c = &b->chain[i];
        uint64_t most = len - done, got;

        if (c->state != VH_POPPED)
            continue;
        if (sizes && sizes[i] < most)
            most = sizes[i];
        got = vh_scatter(&b->iov[c->iov + c->n_read], c->n_write, 0, (const char *)from + done, most);
        if (!got && c->write_len && !(sizes && !sizes[i]))
            break;
        c->written = (uint32_t)got;
        c->state = VH_DONE;
        done += got;
    }
    return done;
}

/* The first `width` bytes of the readable part of every chain, a row for each; what is missing is left as it is. */
void vh_batch_gather(const struct vh_batch *b, void *to, uint64_t width)
{
    for (uint32_t i = 0; i < b->n; i++)
        vh_gather(&b->iov[b->chain[i].iov], b->chain[i].n_read, 0, (char *)to + i * width, width);
}

/* Bytes in the readable and in the writable part of every chain. */
void vh_batch_sizes(const struct vh_batch *b, uint64_t *readable, uint64_t *writable)
{
    for (uint32_t i = 0; i < b->n; i++) {
        readable[i] = b->chain[i].read_len;
        writable[i] = b->chain[i].write_len;
    }
}

uint64_t vh_batch_readable(const struct vh_batch *b)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < b->n; i++)
        sum += b->chain[i].read_len;
    return sum;
}

uint64_t vh_batch_writable(const struct vh_batch *b)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < b->n; i++)
        sum += b->chain[i].write_len;
    return sum;
}
