/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * A virtual Ethernet switch between guests. Each pair of a sending and a receiving queue has a ring of frames of
 * its own, with one writer and one reader, in memory that no guest sees; frames are copied into it and out of it.
 * A full ring drops. The only thing that senders share is the table of stations, whose entries are single words.
 */
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "net.h"

enum { WAYS = 4, ALIGN = 8, SKIP = UINT32_MAX };

/* In front of each frame in a ring; SKIP: the rest of the ring is unused, go on at its start. */
struct slot {
    uint32_t len;
    uint32_t pad;
};

/* ---- rings of frames ------------------------------------------------------------------------------------- */

static uint32_t fifo_of(const struct vh_switch *s, uint32_t port, uint32_t pair, uint32_t to, uint32_t to_pair)
{
    return ((port * s->pairs + pair) * s->ports + to) * s->pairs + to_pair;
}

/* Room for a frame, or NULL; it is in the ring once next is stored in tail. */
static void *reserve(const struct vh_switch *s, uint32_t which, uint32_t len)
{
    struct vh_fifo *f = &s->fifo[which];
    uint8_t *base = s->frames + (uint64_t)which * s->size;
    uint64_t need = sizeof(struct slot) + (((uint64_t)len + ALIGN - 1) & ~(uint64_t)(ALIGN - 1));
    uint64_t to_end = s->size - (f->next & (s->size - 1)), skip = need <= to_end ? 0 : to_end;

    if (f->next + skip + need - f->seen_head > s->size) {
        f->seen_head = __atomic_load_n(&f->head, __ATOMIC_ACQUIRE);
        if (f->next + skip + need - f->seen_head > s->size)
            return NULL;
    }
    if (skip) {
        *(struct slot *)(base + (f->next & (s->size - 1))) = (struct slot){.len = SKIP};
        f->next += skip;
    }
    base += f->next & (s->size - 1);
    *(struct slot *)base = (struct slot){.len = len};
    f->next += need;
    return base + sizeof(struct slot);
}

/* ---- stations -------------------------------------------------------------------------------------------- */

static uint32_t seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint32_t)now.tv_sec;
}

static struct vh_mac *bucket(const struct vh_switch *s, uint64_t mac)
{
    uint64_t hash = (mac ^ s->seed) * 0x9e3779b97f4a7c15u;

    hash = (hash ^ hash >> 32) * 0xd6e8feb86659fd93u;
    return &s->station[(hash >> 32 & (s->buckets - 1)) * WAYS];
}

static bool stale(const struct vh_switch *s, const struct vh_mac *m, uint32_t now)
{
    return now - __atomic_load_n(&m->seen, __ATOMIC_RELAXED) > s->max_age;
}

/* The port of a station, or -1. */
static int find(const struct vh_switch *s, uint64_t mac, uint32_t now)
{
    const struct vh_mac *m = bucket(s, mac);

    for (uint32_t i = 0; i < WAYS; i++) {
        uint64_t key = __atomic_load_n(&m[i].key, __ATOMIC_RELAXED);

        if (key >> 16 == mac && key && !stale(s, &m[i], now))
            return (int)(key & 0xffff) - 1;
    }
    return -1;
}

static void count(const struct vh_switch *s, uint64_t key, uint32_t step)
{
    if (key)
        __atomic_fetch_add(&s->port[(key & 0xffff) - 1].addresses, step, __ATOMIC_RELAXED);
}

/* Put a key in the place of another, unless somebody else was quicker. */
static void replace(const struct vh_switch *s, struct vh_mac *m, uint64_t old, uint64_t new, uint32_t now)
{
    __atomic_store_n(&m->seen, now, __ATOMIC_RELAXED);
    if (!__atomic_compare_exchange_n(&m->key, &old, new, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        return;
    count(s, old, UINT32_MAX);
    count(s, new, 1);
}

/* Forget the silent stations of a port, if that was not done this second. Returns whether it may have another. */
static bool sweep(const struct vh_switch *s, uint32_t port, uint32_t now)
{
    if (__atomic_exchange_n(&s->port[port].swept, now, __ATOMIC_RELAXED) == now)
        return false;
    for (uint32_t i = 0; i < s->buckets * WAYS; i++) {
        uint64_t key = __atomic_load_n(&s->station[i].key, __ATOMIC_RELAXED);

        if (key && (key & 0xffff) - 1 == port && stale(s, &s->station[i], now))
            replace(s, &s->station[i], key, 0, now);
    }
    return __atomic_load_n(&s->port[port].addresses, __ATOMIC_RELAXED) < s->quota;
}

/*
 * A station has sent. It takes the place of a silent one; a guest that invents addresses does not get more than
 * its quota, and none of another's.
 */
static inline __attribute__((always_inline)) void learn(const struct vh_switch *s, uint64_t mac, uint32_t port,
                                                        uint32_t now)
{
    struct vh_mac *m = bucket(s, mac), *place = NULL;
    uint64_t new = mac << 16 | (port + 1), old = 0;

    for (uint32_t i = 0; i < WAYS; i++) {
        uint64_t key = __atomic_load_n(&m[i].key, __ATOMIC_RELAXED);

        if (key == new) {
            if (__atomic_load_n(&m[i].seen, __ATOMIC_RELAXED) != now)
                __atomic_store_n(&m[i].seen, now, __ATOMIC_RELAXED);
            return;
        }
        if (key >> 16 == mac && key) { /* it has moved */
            place = &m[i];
            old = key;
            break;
        }
        if (!place && (!key || stale(s, &m[i], now))) {
            place = &m[i];
            old = key;
        }
    }
    if (!place)
        return;
    if (__atomic_load_n(&s->port[port].addresses, __ATOMIC_RELAXED) >= s->quota) {
        if (!sweep(s, port, now))
            return;
        if (old && (old & 0xffff) - 1 == port)
            old = __atomic_load_n(&place->key, __ATOMIC_RELAXED); /* it may be swept too */
    }
    replace(s, place, old, new, now);
}

/* Forget the stations of a port whose guest has gone. */
void vh_switch_forget(struct vh_switch *s, uint32_t port)
{
    for (uint32_t i = 0; i < s->buckets * WAYS; i++) {
        uint64_t key = __atomic_load_n(&s->station[i].key, __ATOMIC_RELAXED);

        if (key && (key & 0xffff) - 1 == port)
            replace(s, &s->station[i], key, 0, 0);
    }
}

/* The guest at a port has another address now; 0: it had none that is known. From any thread. */
void vh_switch_move(struct vh_switch *s, uint32_t port, uint64_t old, uint64_t new)
{
    struct vh_mac *m = bucket(s, old);
    uint64_t key = old << 16 | (port + 1);
    uint32_t now = seconds();

    for (uint32_t i = 0; i < WAYS; i++)
        if (__atomic_load_n(&m[i].key, __ATOMIC_RELAXED) == key)
            replace(s, &m[i], key, 0, now);
    if (new != s->mac)
        learn(s, new, port, now);
}

int vh_switch_find(struct vh_switch *s, uint64_t mac)
{
    return find(s, mac, seconds());
}

/* ---- sending --------------------------------------------------------------------------------------------- */

static void wake(struct vh_receiver *r)
{
    if (__atomic_load_n(&r->asleep, __ATOMIC_RELAXED) &&
        __atomic_exchange_n(&r->asleep, 0, __ATOMIC_ACQ_REL) && write(r->fd, &(uint64_t){1}, 8) < 0)
        return; /* its counter is full: it is awake */
}

/* Show the receivers what the batch has brought, and wake those who sleep. */
static void publish(struct vh_net_port *p)
{
    struct vh_switch *s = p->hub;

    for (uint32_t i = 0; i < p->n_touched; i++) {
        struct vh_fifo *f = &s->fifo[p->touched[i]];

        __atomic_store_n(&f->tail, f->next, __ATOMIC_RELEASE);
    }
    fence();
    for (uint32_t i = 0; i < p->n_touched; i++)
        wake(&s->receiver[p->touched[i] % (s->ports * s->pairs)]);
    p->n_touched = 0;
}

/* Where the frames of this sender for a port go, or NULL: nobody is there, or there is no room. */
static void *place(struct vh_net_port *p, uint32_t to, uint32_t len)
{
    struct vh_switch *s = p->hub;
    uint32_t active = __atomic_load_n(&s->port[to].active, __ATOMIC_RELAXED), which;
    struct vh_fifo *f;
    bool first;
    void *room;

    if (!active)
        return NULL;
    which = fifo_of(s, p->port, p->pair, to, active > p->pair ? p->pair : p->pair % active);
    f = &s->fifo[which];
    first = f->next == f->tail;
    room = reserve(s, which, len);
    if (!room)
        p->net.dropped++;
    else if (first)
        p->touched[p->n_touched++] = which;
    return room;
}

static uint64_t mac_at(const uint8_t *p)
{
    return (uint64_t)p[0] << 40 | (uint64_t)p[1] << 32 | (uint64_t)p[2] << 24 | (uint64_t)p[3] << 16 |
           (uint64_t)p[4] << 8 | p[5];
}

static void copy_to(struct vh_net_port *p, uint32_t to, const struct frame *f)
{
    void *room = place(p, to, f->len);

    if (room && vh_gather(f->iov, f->n, f->skip, room, f->len) != f->len)
        memset(room, 0, f->len);
}

/* Returns true if Python is to see the frame too. */
static bool forward(struct vh_net_port *p, const struct frame *f, uint32_t now)
{
    struct vh_switch *s = p->hub;
    uint8_t addresses[12];
    uint64_t to, from;
    int port;

    vh_gather(f->iov, f->n, f->skip, addresses, sizeof(addresses));
    to = mac_at(addresses);
    from = mac_at(addresses + 6);
    if (!(from >> 40 & 1) && from && from != s->mac)
        learn(s, from, p->port, now);
    if (to == s->mac && s->mac)
        return true;
    port = to >> 40 & 1 ? -1 : find(s, to, now);
    if (port >= 0 && port != (int)p->port)
        copy_to(p, (uint32_t)port, f);
    for (uint32_t i = 0; port < 0 && i < s->ports; i++)
        if (i != p->port)
            copy_to(p, i, f);
    return s->mac && to >> 40 & 1;
}

/* Nothing but the frame itself was negotiated; a header that says more is not the guest's to write. */
static bool plain(const struct vh_batch *b, const struct vh_chain *c)
{
    uint8_t header[2];

    vh_gather(&b->iov[c->iov], c->n_read, 0, header, sizeof(header));
    return !(header[0] & NET_NEEDS_CSUM) && !header[1];
}

static uint32_t port_send(struct vh_net *n, struct vh_batch *b)
{
    struct vh_net_port *p = (struct vh_net_port *)n;
    uint32_t now = seconds(), left = 0;

    for (uint32_t i = 0; i < b->n; i++) {
        struct vh_chain *c = &b->chain[i];
        struct frame f;

        if (c->state != VH_POPPED)
            continue;
        if (!frame_of(n, b, c, &f) || !plain(b, c)) {
            n->malformed++;
            c->state = VH_DONE;
            continue;
        }
        n->frames++;
        n->bytes += f.len;
        if (forward(p, &f, now))
            left++;
        else
            c->state = VH_DONE;
    }
    publish(p);
    return left;
}

/* A frame from this process to the sender's own guest: only the thread of that queue may call this. */
int vh_port_inject(struct vh_net_port *p, const void *frame, uint32_t len)
{
    void *room = place(p, p->port, len);

    if (!room)
        return 0;
    memcpy(room, frame, len);
    if (p->net.record >= 0)
        vh_net_record_pieces(&p->net, &(struct vh_iov){room, len}, 1, 0, len);
    publish(p);
    return 1;
}

/* ---- receiving ------------------------------------------------------------------------------------------- */

/* Deliver the frames of one ring until it is empty or the chains are used up. */
static void drain(struct vh_net_port *p, uint32_t which, const struct vh_queue *q, struct vh_batch *b)
{
    const struct vh_switch *s = p->hub;
    struct vh_fifo *f = &s->fifo[which];
    uint64_t head = f->head, tail = __atomic_load_n(&f->tail, __ATOMIC_ACQUIRE);
    const uint8_t *base = s->frames + (uint64_t)which * s->size;

    if (head == tail)
        return;
    while (head != tail) {
        const struct slot *slot = (const struct slot *)(base + (head & (s->size - 1)));

        if (slot->len == SKIP) {
            head += s->size - (head & (s->size - 1));
            continue;
        }
        if (!vh_net_deliver(&p->net, q, b, slot + 1, slot->len))
            break;
        head += sizeof(struct slot) + (((uint64_t)slot->len + ALIGN - 1) & ~(uint64_t)(ALIGN - 1));
    }
    __atomic_store_n(&f->head, head, __ATOMIC_RELEASE);
}

static uint32_t senders(const struct vh_switch *s)
{
    return s->ports * s->pairs;
}

static bool anything(const struct vh_net_port *p)
{
    const struct vh_switch *s = p->hub;

    for (uint32_t i = 0; i < senders(s); i++) {
        struct vh_fifo *f = &s->fifo[fifo_of(s, 0, i, p->port, p->pair)];

        if (f->head != __atomic_load_n(&f->tail, __ATOMIC_ACQUIRE))
            return true;
    }
    return false;
}

static int ready(const struct vh_path *self)
{
    const struct vh_net_port *p = (const struct vh_net_port *)self;

    return !p->net.off && anything(p);
}

static uint32_t port_receive(struct vh_net *n, const struct vh_queue *q, struct vh_batch *b)
{
    struct vh_net_port *p = (struct vh_net_port *)n;
    const struct vh_switch *s = p->hub;
    struct vh_receiver *me = &s->receiver[p->port * s->pairs + p->pair];
    uint32_t first = n->from;
    uint64_t calls;

    if (p->armed) {
        p->armed = 0;
        __atomic_store_n(&me->asleep, 0, __ATOMIC_RELAXED);
        if (read(me->fd, &calls, sizeof(calls)) < 0)
            calls = 0; /* nobody has called */
    }
    for (uint32_t i = 0; i < senders(s) && !n->hungry; i++) {
        drain(p, fifo_of(s, 0, p->turn, p->port, p->pair), q, b);
        p->turn = p->turn + 1 == senders(s) ? 0 : p->turn + 1;
    }
    if (!n->hungry && n->from == first) {
        p->armed = 1;
        __atomic_store_n(&me->asleep, 1, __ATOMIC_RELAXED);
        fence();
        if (anything(p)) /* it came in between: look again at once */
            wake(me);
    }
    return n->from - first;
}

/* The receiving queue is enabled, and not served while this runs: what came before was for nobody. */
void vh_port_reset(struct vh_net_port *p)
{
    const struct vh_switch *s = p->hub;

    for (uint32_t i = 0; i < senders(s); i++) {
        struct vh_fifo *f = &s->fifo[fifo_of(s, 0, i, p->port, p->pair)];

        __atomic_store_n(&f->head, __atomic_load_n(&f->tail, __ATOMIC_ACQUIRE), __ATOMIC_RELEASE);
    }
}

void vh_port_send(struct vh_net_port *p)
{
    vh_net_sends(&p->net, port_send);
}

void vh_port_receive(struct vh_net_port *p)
{
    vh_net_receives(&p->net, port_receive);
    p->net.path.ready = ready;
    p->net.path.event_fd = p->hub->receiver[p->port * p->hub->pairs + p->pair].fd;
}
