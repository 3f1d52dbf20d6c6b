/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* What the networks share. */
#ifndef VHOST_NET_H
#define VHOST_NET_H

#include <sys/uio.h>

#include "core.h"
#include "ring.h"

enum { NET_HEADER_MAX = 12, NUM_BUFFERS = 10 };
enum { NET_NEEDS_CSUM = 1 };

/* The fields of a frame's header, in the byte order of the ring. */
static inline uint16_t field(const struct vh_net *n, uint16_t value)
{
    return n->big ? htobe16(value) : htole16(value);
}

/* A frame in the readable part of a chain: the bytes behind the header. */
struct frame {
    const struct vh_iov *iov;
    uint32_t n;
    uint32_t len;
    uint64_t skip; /* bytes of the pieces in front of it */
};

/* False: what the chain holds is no frame. */
static inline bool frame_of(const struct vh_net *n, const struct vh_batch *b, const struct vh_chain *c,
                            struct frame *f)
{
    if (c->read_len < (uint64_t)n->header + VH_NET_FRAME_MIN ||
        c->read_len > (uint64_t)n->header + VH_NET_FRAME_MAX)
        return false;
    *f = (struct frame){&b->iov[c->iov], c->n_read, (uint32_t)(c->read_len - n->header), n->header};
    return true;
}

/* Append a frame to the pcap file: bytes [skip, skip + len) of the pieces. */
void vh_net_record_pieces(struct vh_net *n, const struct vh_iov *iov, uint32_t count, uint64_t skip, uint32_t len);
/* The same for a received frame of len bytes, which is in count chains from c on, behind its header. */
void vh_net_record_chains(struct vh_net *n, const struct vh_batch *b, const struct vh_chain *c, uint32_t count,
                          uint32_t len);

/*
 * The chains from first on that a frame with its header takes; 0: they have no room for it. Without MRG_RXBUF it
 * is always one.
 */
uint32_t vh_net_room(const struct vh_net *n, const struct vh_batch *b, uint32_t first, uint64_t need);

/*
 * Whether the driver will hardly offer more room than the batch has now. Translations may be taken back while nothing
 * happens, so with them nothing is held that waits for more.
 */
static inline bool that_is_all(const struct vh_net *n, const struct vh_queue *q, const struct vh_batch *b)
{
    uint32_t have = b->n - n->from, descs = 0;

    if (have >= b->cap || have >= (q->num + 1) / 2 || (q->features & VH_F_TRANSLATED))
        return true;
    for (uint32_t i = n->from; i < b->n; i++)
        descs += b->chain[i].descs;
    return descs >= (q->num + 1) / 2;
}

/* Whether the guest's driver has said which frames it wants. */
static inline bool filtered(const struct vh_net *n)
{
    return __builtin_expect(__atomic_load_n(&n->filter, __ATOMIC_RELAXED) != NULL, 0);
}

/* Whether it wants this one: bytes from skip on of the pieces. */
bool vh_net_passes(const struct vh_net *n, const struct vh_iov *iov, uint32_t count, uint64_t skip);

void vh_net_sends(struct vh_net *n, uint32_t (*send)(struct vh_net *n, struct vh_batch *b));
void vh_net_receives(struct vh_net *n,
                     uint32_t (*fill)(struct vh_net *n, const struct vh_queue *q, struct vh_batch *b));

/* Complete `count` chains that hold `len` bytes, header included, and say in the header how many they are. */
void vh_net_complete(struct vh_net *n, struct vh_batch *b, uint32_t count, uint64_t len);

/*
 * Deliver a frame that the guest wants to the chains from n->from on; false: there is no room now, and there may be
 * later.
 */
bool vh_net_deliver(struct vh_net *n, const struct vh_queue *q, struct vh_batch *b, const void *frame,
                    uint32_t len);

#endif
