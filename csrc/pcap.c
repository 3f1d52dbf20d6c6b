/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * Records of a pcap file (draft-ietf-opsawg-pcap, 5) in little-endian order. Each is one write to a file opened with
 * O_APPEND, so that several queues share it without a lock.
 */
#define _GNU_SOURCE
#include <limits.h>
#include <time.h>

#include "net.h"

struct record {
    uint32_t seconds, microseconds, captured, len;
};

/* Room for the pieces of a frame; the first is the record. */
struct pieces {
    struct iovec iov[IOV_MAX];
    uint32_t n;
    uint32_t len;
};

static void add(struct pieces *p, const struct vh_iov *iov, uint32_t n, uint64_t skip, uint64_t len)
{
    for (uint32_t i = 0; i < n && len && p->n < IOV_MAX; i++) {
        uint64_t take = iov[i].len;

        if (skip >= take) {
            skip -= take;
            continue;
        }
        take = take - skip < len ? take - skip : len;
        p->iov[p->n++] = (struct iovec){(char *)iov[i].base + skip, take};
        p->len += (uint32_t)take;
        len -= take;
        skip = 0;
    }
}

static void record(struct vh_net *n, struct pieces *p, uint32_t len)
{
    struct timespec now;
    struct record r;
    ssize_t wrote;

    clock_gettime(CLOCK_REALTIME, &now);
    r = (struct record){htole32((uint32_t)now.tv_sec), htole32((uint32_t)(now.tv_nsec / 1000)), htole32(p->len),
                        htole32(len)};
    p->iov[0] = (struct iovec){&r, sizeof(r)};
    wrote = writev(n->record, p->iov, (int)p->n);
    if (wrote == (ssize_t)(sizeof(r) + p->len))
        return;
    n->unrecorded++;
    if (wrote > 0)
        n->record = -1; /* whatever followed half a record could not be read */
}

void vh_net_record_pieces(struct vh_net *n, const struct vh_iov *iov, uint32_t count, uint64_t skip, uint32_t len)
{
    struct pieces p = {.n = 1};

    add(&p, iov, count, skip, len);
    record(n, &p, len);
}

void vh_net_record_chains(struct vh_net *n, const struct vh_batch *b, const struct vh_chain *c, uint32_t count,
                          uint32_t len)
{
    struct pieces p = {.n = 1};
    uint64_t skip = n->header;

    for (uint32_t i = 0; i < count; i++, skip = 0)
        add(&p, &b->iov[c[i].iov + c[i].n_read], c[i].n_write, skip, c[i].written - skip);
    record(n, &p, len);
}
