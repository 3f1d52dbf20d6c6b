/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * Random numbers from getrandom(2). For small requests the call costs more than the bytes, so one call serves as many
 * requests as the stock holds. It takes exactly the bytes that are given then: none stays, none is given twice.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "core.h"

enum { STOCK = sizeof(((struct vh_rng_path *)0)->stock) };
enum { MOST = 65536 }; /* bytes for one request; the driver asks again, and meanwhile others have their turn */

/* Returns how many bytes there were: fewer only where the kernel has none or the buffer is gone. */
static uint64_t fill(struct vh_rng_path *p, void *to, uint64_t len)
{
    uint64_t done = 0;

    while (done < len) {
        ssize_t got = getrandom((char *)to + done, len - done, 0);

        p->calls++;
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        done += (uint64_t)got;
    }
    return done;
}

static void done(struct vh_chain *c, uint64_t written)
{
    c->written = (uint32_t)written;
    c->state = VH_DONE;
}

/* A request that is larger than the stock gets its bytes without a copy. */
static void serve_large(struct vh_rng_path *p, const struct vh_batch *b, struct vh_chain *c)
{
    const struct vh_iov *piece = &b->iov[c->iov];
    uint64_t left = c->write_len < MOST ? c->write_len : MOST, written = 0;

    for (uint32_t i = 0; i < c->n_write && left; i++) {
        uint64_t take = piece[i].len < left ? piece[i].len : left, got = fill(p, piece[i].base, take);

        written += got;
        left -= got;
        if (got < take)
            break;
    }
    if (written)
        done(c, written);
}

/* Deal `need` bytes out over the waiting chains of [first, last). */
static void serve_small(struct vh_rng_path *p, const struct vh_batch *b, uint32_t first, uint32_t last, uint64_t need)
{
    const uint8_t *from = p->stock;

    if (fill(p, p->stock, need) < need)
        return;
    for (uint32_t i = first; i < last; i++) {
        struct vh_chain *c = &b->chain[i];
        const struct vh_iov *piece = &b->iov[c->iov];

        if (c->state != VH_POPPED || c->read_len || c->write_len > STOCK)
            continue;
        for (uint32_t k = 0; k < c->n_write; k++) {
            memcpy(piece[k].base, from, piece[k].len);
            from += piece[k].len;
        }
        done(c, c->write_len);
    }
    explicit_bzero(p->stock, need);
}

static uint32_t serve(struct vh_path *self, struct vh_queue *q, struct vh_batch *b)
{
    struct vh_rng_path *p = (struct vh_rng_path *)self;
    uint32_t first = 0, left = 0;
    uint64_t need = 0;

    (void)q;
    for (uint32_t i = 0; i < b->n; i++) {
        struct vh_chain *c = &b->chain[i];

        if (c->state != VH_POPPED || c->read_len)
            continue; /* Python has a word for drivers that send something */
        if (c->write_len > STOCK) {
            serve_large(p, b, c);
            continue;
        }
        if (need + c->write_len > STOCK) {
            serve_small(p, b, first, i, need);
            first = i;
            need = 0;
        }
        need += c->write_len;
        if (c->n_write)
            __builtin_prefetch(b->iov[c->iov].base, 1);
    }
    serve_small(p, b, first, b->n, need);
    for (uint32_t i = 0; i < b->n; i++)
        left += b->chain[i].state == VH_POPPED;
    return left;
}

void vh_rng_init(struct vh_rng_path *p)
{
    *p = (struct vh_rng_path){.path = {.serve = serve, .event_fd = -1}};
}
