/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * Surviving files that shrink. The owner of a file that we have mapped can truncate it at any time, and the
 * next access beyond its new end raises SIGBUS. Inside a guarded range the handler puts zero pages there,
 * marks the range, and the access goes on; who made it finds out with vh_guard_hit() or vh_guard_hits().
 *
 * The ranges are in a fixed table without locks, since the handler reads it at any moment and in any thread.
 * What the handler calls is async-signal-safe: sigaction, raise, and mmap and gettid, which are bare system
 * calls. It needs little stack, and takes the alternate one if the thread has one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core.h"

/* Enough for eight guests with every slot of their memory in use. */
#define SLOTS 4096
/* Pages replaced one by one in a range. Each splits a mapping, and a process may have only so many (65530 by
 * default), so a range that loses more is replaced as a whole. */
#define SINGLE 16

struct slot {
    /* How often the slot changed hands: odd while in use, so that a reader knows that start and end belong
     * together when it finds the same odd number before and after reading them. */
    atomic_uint turn;
    atomic_uint hit; /* faults so far */
    atomic_uintptr_t start;
    atomic_uintptr_t end;
};

static struct slot slots[SLOTS];
static atomic_uint used; /* slots at and above this were never in use */
static atomic_uint vacant; /* where to look for a free slot: those below are most likely in use */
static atomic_uint hits;

/* Who had SIGBUS before us: at first, and when we last had to take it again. */
static struct sigaction first, latest;
static bool installed;
static atomic_flag installing = ATOMIC_FLAG_INIT;
/* The thread that is inside a handler of somebody else, called by ours. */
static atomic_int chaining;

static bool replace(uintptr_t start, uintptr_t end)
{
    return mmap((void *)start, end - start, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED;
}

/* Make the access at this address possible, if it is in a guarded range. */
static bool survive(uintptr_t address)
{
    uint32_t n = atomic_load_explicit(&used, memory_order_acquire);
    for (uint32_t i = 0; i < n; i++) {
        struct slot *s = &slots[i];
        unsigned int turn = atomic_load_explicit(&s->turn, memory_order_acquire);
        uintptr_t start = atomic_load_explicit(&s->start, memory_order_acquire);
        uintptr_t end = atomic_load_explicit(&s->end, memory_order_acquire);
        if (!(turn & 1) || address < start || address >= end ||
            atomic_load_explicit(&s->turn, memory_order_relaxed) != turn)
            continue;
        uintptr_t size = (uintptr_t)sysconf(_SC_PAGESIZE);
        uintptr_t page = address & ~(size - 1);
        bool single = atomic_fetch_add_explicit(&s->hit, 1, memory_order_release) < SINGLE;
        atomic_fetch_add_explicit(&hits, 1, memory_order_release);
        /* A single page cannot be replaced in a huge one. */
        return (single && replace(page, page + size)) || replace(start, end);
    }
    return false;
}

/* What the process would have had without us. */
static void die(void)
{
    struct sigaction fallback = {.sa_handler = SIG_DFL};
    sigaction(SIGBUS, &fallback, NULL);
    raise(SIGBUS);
}

static void on_bus(int number, siginfo_t *info, void *context);

static void pass_on(const struct sigaction *to, int number, siginfo_t *info, void *context)
{
    if ((to->sa_flags & SA_SIGINFO) && to->sa_sigaction != on_bus)
        to->sa_sigaction(number, info, context);
    else if (!(to->sa_flags & SA_SIGINFO) && to->sa_handler == SIG_IGN && info->si_code <= 0)
        return; /* somebody sent it, and it was to be ignored; a fault cannot be */
    else if (!(to->sa_flags & SA_SIGINFO) && to->sa_handler != SIG_DFL && to->sa_handler != SIG_IGN)
        to->sa_handler(number);
    else
        die();
}

static void on_bus(int number, siginfo_t *info, void *context)
{
    int error = errno;
    bool fault = info->si_code == BUS_ADRERR || info->si_code == BUS_MCEERR_AR;
    if (!fault || !survive((uintptr_t)info->si_addr)) {
        int self = (int)syscall(SYS_gettid);
        int nobody = 0;
        if (atomic_load(&chaining) == self) {
            /* A handler that came after us has put us back and raised the signal again, as faulthandler does:
             * go to the one before, or nobody would ever end the process. */
            if (first.sa_sigaction == latest.sa_sigaction)
                die();
            else
                pass_on(&first, number, info, context);
        } else {
            bool mine = atomic_compare_exchange_strong(&chaining, &nobody, self);
            pass_on(&latest, number, info, context);
            if (mine)
                atomic_store(&chaining, 0);
        }
    }
    errno = error;
}

/* Others take SIGBUS too (faulthandler, for one), so whether it is still ours is checked for every range. */
static int install(void)
{
    struct sigaction now, ours = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    int error = 0;
    sigemptyset(&ours.sa_mask);
    while (atomic_flag_test_and_set_explicit(&installing, memory_order_acquire))
        ;
    if (sigaction(SIGBUS, NULL, &now) != 0) {
        error = -errno;
    } else if (!(now.sa_flags & SA_SIGINFO) || now.sa_sigaction != on_bus) {
        if (!installed)
            first = now;
        latest = now;
        if (sigaction(SIGBUS, &ours, NULL) != 0)
            error = -errno;
        else
            installed = true;
    }
    atomic_flag_clear_explicit(&installing, memory_order_release);
    return error;
}

int vh_guard_add(void *addr, size_t len)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t start = (uintptr_t)addr & ~(page - 1);
    uintptr_t end = ((uintptr_t)addr + len + page - 1) & ~(page - 1);
    if (!start || !len || end <= start)
        return -EINVAL;
    int error = install();
    if (error)
        return error;
    uint32_t from = atomic_load_explicit(&vacant, memory_order_relaxed);
    for (uint32_t n = 0; n < SLOTS; n++) {
        uint32_t i = (from + n) % SLOTS;
        struct slot *s = &slots[i];
        unsigned int turn = atomic_load_explicit(&s->turn, memory_order_relaxed);
        /* A free slot starts at 0: who sets its start has it. It counts once its turn is odd. */
        uintptr_t none = 0;
        if ((turn & 1) || !atomic_compare_exchange_strong(&s->start, &none, start))
            continue;
        atomic_store_explicit(&s->hit, 0, memory_order_relaxed);
        atomic_store_explicit(&s->end, end, memory_order_release);
        atomic_fetch_add_explicit(&s->turn, 1, memory_order_release);
        uint32_t seen = atomic_load_explicit(&used, memory_order_relaxed);
        while (seen <= i && !atomic_compare_exchange_weak(&used, &seen, i + 1))
            ;
        atomic_compare_exchange_strong(&vacant, &from, i + 1);
        return (int)i + 1;
    }
    return -ENOSPC;
}

void vh_guard_remove(int slot)
{
    if (slot <= 0 || slot > SLOTS)
        return;
    struct slot *s = &slots[slot - 1];
    atomic_fetch_add_explicit(&s->turn, 1, memory_order_release);
    atomic_store_explicit(&s->end, 0, memory_order_release);
    atomic_store_explicit(&s->start, 0, memory_order_release);
    uint32_t from = atomic_load_explicit(&vacant, memory_order_relaxed);
    while (from >= (uint32_t)slot && !atomic_compare_exchange_weak(&vacant, &from, (uint32_t)slot - 1))
        ;
}

int vh_guard_hit(int slot)
{
    if (slot <= 0 || slot > SLOTS)
        return 0;
    return atomic_load_explicit(&slots[slot - 1].hit, memory_order_acquire) != 0;
}

uint32_t vh_guard_hits(void)
{
    return atomic_load_explicit(&hits, memory_order_acquire);
}
