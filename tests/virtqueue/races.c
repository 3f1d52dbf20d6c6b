/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * A driver and a device, each in a thread of its own, and a third that changes the table of guest memory all the time.
 * Both sleep until they are notified, at random moments, and check every byte: built with a sanitizer by tests/races.py.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core.h"

enum { MOST = 256, SLOT = 64, TABLE = 4, PATIENCE = 60000 };

#define GPA UINT64_C(0x40000000)
#define RING_SIZE ((size_t)MOST * DESC_SIZE)

struct test {
    uint32_t num, features, kind, requests;
    unsigned char *ram; /* descriptors, avail, used, tables, data */
    size_t avail, used, tables, data, size;
    int kick, call;
    struct vh_driver d;
    struct vh_queue q;
    uint32_t over;
    uint64_t kicks, calls, sleeps[2], swaps;
};

static _Noreturn void fail(const char *what, const struct test *t)
{
    fprintf(stderr, "%s: kind %u, %u entries, features %#x\n", what, t->kind, t->num, t->features);
    fprintf(stderr, "driver: added %lu, shown %lu, returned %lu; device: popped %lu, pushed %lu\n",
            (unsigned long)t->d.added, (unsigned long)t->d.shown, (unsigned long)t->d.returned,
            (unsigned long)t->q.popped, (unsigned long)t->q.pushed);
    abort();
}

/* xorshift */
static uint32_t draw(uint32_t *state, uint32_t n)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state % n;
}

static void dawdle(uint32_t *state)
{
    uint32_t what = draw(state, 200);

    if (what == 0)
        usleep(draw(state, 300));
    else if (what < 8)
        sched_yield();
    else if (what < 60)
        for (volatile uint32_t i = draw(state, 400); i; i--)
            ;
}

static void notify(int fd)
{
    uint64_t one = 1;

    if (write(fd, &one, sizeof(one)) != sizeof(one))
        abort();
}

static void await(int fd, const struct test *t, const char *what)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    uint64_t count;

    if (poll(&wait, 1, PATIENCE) != 1)
        fail(what, t);
    if (read(fd, &count, sizeof(count)) != sizeof(count))
        abort();
}

static void *drive(void *context)
{
    struct test *t = context;
    struct vh_driver *d = &t->d;
    uint32_t random = 0x9E3779B9u ^ t->features ^ t->num, sent = 0, back = 0;
    static _Thread_local uint32_t of[MOST];
    static _Thread_local uint32_t place_of[MOST];
    static _Thread_local uint32_t places[MOST];
    struct vh_used used[MOST];
    uint32_t vacant = t->num;

    for (uint32_t i = 0; i < t->num; i++)
        places[i] = i;
    while (back < t->requests) {
        uint32_t most = 1 + draw(&random, t->num);
        int n;

        for (uint32_t k = 0; k < most && sent < t->requests && vacant; k++) {
            uint32_t place = places[vacant - 1], parts = draw(&random, 3);
            uint64_t at = GPA + t->data + (uint64_t)place * SLOT;
            struct vh_buf bufs[3] = {{at, 4, 0}, {at + 4, 4, parts == 1 ? 0 : 1}, {at + 32, 4, 1}};
            unsigned char *data = t->ram + t->data + (size_t)place * SLOT;
            int id;

            memset(data, 0, SLOT);
            memcpy(data, &sent, 4);
            id = vh_driver_add(d, bufs, t->num < 3 ? 2 : 3);
            if (id < 0)
                break;
            of[id] = sent++;
            place_of[id] = place;
            vacant--;
        }
        dawdle(&random);
        if (vh_driver_publish(d)) {
            t->kicks++;
            notify(t->kick);
        }
        dawdle(&random);
        n = vh_driver_poll(d, used, 1 + draw(&random, t->num));
        if (n < 0)
            fail("the device returned what it was not given", t);
        for (int i = 0; i < n; i++) {
            uint32_t id = used[i].id, answer;
            unsigned char *data = t->ram + t->data + (size_t)place_of[id] * SLOT;

            memcpy(&answer, data + (t->num < 3 || used[i].len == 8 ? 4 : 32), 4);
            if (used[i].len && answer != ~of[id])
                fail("a wrong answer", t);
            places[vacant++] = place_of[id];
        }
        back += (uint32_t)n;
        if (n || (sent < t->requests && vacant && d->n_free >= 3 && draw(&random, 2)))
            continue;
        if (d->added == d->returned)
            continue;
        if (vh_driver_calls_on(d))
            continue;
        t->sleeps[0]++;
        dawdle(&random);
        await(t->call, t, "a call was lost");
        vh_driver_calls_off(d);
    }
    return NULL;
}

static void answer(struct test *t, struct vh_batch *b, struct vh_chain *c, uint32_t *next)
{
    uint32_t number, wrong;

    if (!c->n_read || b->iov[c->iov].len != 4)
        fail("a chain that was not sent", t);
    memcpy(&number, b->iov[c->iov].base, 4);
    if (number != (*next)++)
        fail("a chain out of order, or twice", t);
    wrong = ~number;
    for (uint32_t i = 0; i < c->n_write; i++)
        memcpy(b->iov[c->iov + c->n_read + i].base, &wrong, 4);
    c->written = (uint32_t)c->write_len;
}

static void *serve(void *context)
{
    struct test *t = context;
    struct vh_queue *q = &t->q;
    static struct vh_chain chains[2][64];
    static struct vh_iov iov[2][1024];
    static uint64_t log[2][1024];
    struct vh_batch b[2] = {
        {.cap = 64, .cap_iov = 1024, .chain = chains[0], .iov = iov[0], .log = log[0]},
        {.cap = 64, .cap_iov = 1024, .chain = chains[1], .iov = iov[1], .log = log[1]},
    };
    uint32_t random = 0x85EBCA6Bu ^ t->features ^ t->num, next = 0;

    while (q->pushed < t->requests) {
        bool any = false;

        vh_kicks_off(q);
        for (int which = 0; which < 2; which++) {
            if (!b[which].pending) {
                int n = vh_pop(q, &b[which], 1 + draw(&random, 64));

                if (n < 0)
                    fail("the ring is broken", t);
                for (int i = 0; i < n; i++)
                    answer(t, &b[which], &b[which].chain[i], &next);
            }
            any |= b[which].n > 0;
            dawdle(&random);
            /* Some of it is returned later, in another order. */
            for (uint32_t i = 0; i < b[which].n; i++)
                if (b[which].chain[i].state == VH_POPPED && draw(&random, 4))
                    b[which].chain[i].state = VH_DONE;
            dawdle(&random);
            vh_push(q, &b[which]);
        }
        if (any || vh_kicks_on(q))
            continue;
        if (q->pushed == t->requests)
            break;
        t->sleeps[1]++;
        dawdle(&random);
        await(t->kick, t, "a kick was lost");
    }
    t->calls = q->calls;
    return NULL;
}

static struct vh_mem *table(const struct test *t)
{
    struct vh_mem *m = vh_mem_new(NULL, 2);

    if (!m || vh_mem_put(m, GPA, t->size, GPA) < 0 ||
        vh_mem_back(m, GPA, (uint64_t)(uintptr_t)t->ram, 0, 0, 1) < 0)
        abort();
    vh_mem_index(m);
    return m;
}

/* The control plane: tables come, and go as soon as nobody looks at them. */
static void *swap(void *context)
{
    struct test *t = context;
    struct vh_mem *now = (struct vh_mem *)t->q.mem, *before[8];
    uint32_t n = 0, random = 1;

    while (!__atomic_load_n(&t->over, __ATOMIC_ACQUIRE)) {
        struct vh_mem *fresh = table(t);
        const struct vh_mem *held;
        uint32_t kept = 0;

        before[n++] = now;
        now = fresh;
        held = vh_queue_swap(&t->q, fresh);
        for (uint32_t i = 0; i < n; i++) {
            if (before[i] == held)
                before[kept++] = before[i];
            else
                vh_mem_free(before[i]);
        }
        n = kept;
        t->swaps++;
        dawdle(&random);
        usleep(50);
    }
    for (uint32_t i = 0; i < n; i++)
        vh_mem_free(before[i]);
    return now;
}

static size_t place(size_t *at, size_t size)
{
    size_t here = *at;

    *at += (size + 63) & ~(size_t)63;
    return here;
}

static void run(uint32_t kind, uint32_t num, uint32_t features, bool indirect, uint32_t requests)
{
    static struct test t;
    static struct vh_flight flight[MOST];
    static uint16_t order[MOST];
    static struct vh_turn turns[MOST];
    static unsigned char scratch[RING_SIZE];
    pthread_t threads[3];
    size_t at = 0;
    void *last;

    t = (struct test){.num = num, .features = features, .kind = kind, .requests = requests};
    place(&at, (size_t)num * DESC_SIZE);
    t.avail = place(&at, kind == VH_PACKED ? 4 : 6 + 2 * (size_t)num);
    t.used = place(&at, kind == VH_PACKED ? 4 : 6 + 8 * (size_t)num);
    t.tables = place(&at, (size_t)num * TABLE * DESC_SIZE);
    t.data = place(&at, (size_t)num * SLOT);
    t.size = at;
    t.ram = aligned_alloc(64, at);
    if (!t.ram)
        abort();
    memset(t.ram, 0, at);
    t.kick = eventfd(0, EFD_CLOEXEC);
    t.call = eventfd(0, EFD_CLOEXEC);
    t.d = (struct vh_driver){.desc = t.ram, .avail = t.ram + t.avail, .used = t.ram + t.used, .flight = flight,
                             .order = order, .num = num, .features = features, .kind = (uint8_t)kind, .check = 1};
    if (indirect) {
        t.d.tables = t.ram + t.tables;
        t.d.tables_gpa = GPA + t.tables;
        t.d.table_len = TABLE;
    }
    vh_driver_init(&t.d);
    t.q = (struct vh_queue){.mem = table(&t), .desc = t.ram, .avail = t.ram + t.avail, .used = t.ram + t.used,
                            .num = num, .max_chain = MOST, .features = features | VH_F_INDIRECT, .call_fd = t.call,
                            .kind = (uint8_t)kind, .avail_wrap = 1, .used_wrap = 1, .scratch = scratch,
                            .turns = turns, .num_turns = MOST};
    if (vh_queue_init(&t.q))
        abort();
    if (pthread_create(&threads[0], NULL, drive, &t) || pthread_create(&threads[1], NULL, serve, &t) ||
        pthread_create(&threads[2], NULL, swap, &t))
        abort();
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    __atomic_store_n(&t.over, 1, __ATOMIC_RELEASE);
    pthread_join(threads[2], &last);
    vh_mem_free(last);
    if (t.d.n_free != num || t.q.popped != requests || t.q.taken)
        fail("something is left", &t);
    printf("kind %u, %3u entries, features %2u, %s: %u requests, %lu kicks, %lu calls, slept %lu and %lu, %lu tables\n",
           kind, num, features, indirect ? "indirect" : "direct", requests, (unsigned long)t.kicks,
           (unsigned long)t.calls, (unsigned long)t.sleeps[0], (unsigned long)t.sleeps[1], (unsigned long)t.swaps);
    close(t.kick);
    close(t.call);
    free(t.ram);
}

int main(int argc, char **argv)
{
    static const uint32_t sizes[3][3] = {{2, 16, 256}, {4, 16, 64}, {3, 7, 200}};
    uint32_t requests = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 2000;

    for (uint32_t kind = VH_SPLIT; kind <= VH_PACKED; kind++)
        for (uint32_t size = 0; size < 3; size++)
            for (uint32_t mask = 0; mask < 8; mask++)
                run(kind, sizes[kind][size], (mask & 1 ? VH_F_EVENT_IDX : 0) | (mask & 2 ? VH_F_IN_ORDER : 0), mask & 4,
                    requests);
    return 0;
}
