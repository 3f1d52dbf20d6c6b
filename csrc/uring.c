/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Rings of io_uring: made, handed to the kernel, waited for. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "uring.h"

static int enter(const struct vh_uring *u, uint32_t submit, uint32_t wait, uint32_t flags)
{
    return (int)syscall(SYS_io_uring_enter, u->fd, submit, wait, flags, NULL, 0);
}

bool vh_uring_submit(struct vh_uring *u)
{
    while (u->queued) {
        int n = enter(u, u->queued, 0, 0);

        if (n > 0) {
            u->queued -= (uint32_t)n;
            u->running += (uint32_t)n;
        } else if (n < 0 && errno == EAGAIN && u->running) {
            enter(u, 0, 1, IORING_ENTER_GETEVENTS); /* until there is memory again */
        } else if (n == 0 || errno != EINTR) {
            return false;
        }
    }
    return true;
}

bool vh_uring_unqueue(struct vh_uring *u, uint64_t *user_data)
{
    uint32_t tail = *u->sq_tail - 1;

    if (!u->queued)
        return false;
    *user_data = ((struct io_uring_sqe *)u->sqes)[tail & u->sq_mask].user_data;
    __atomic_store_n(u->sq_tail, tail, __ATOMIC_RELEASE);
    u->queued--;
    return true;
}

void vh_uring_wait(struct vh_uring *u)
{
    if (u->running)
        enter(u, 0, 1, IORING_ENTER_GETEVENTS);
}

bool vh_uring_arm(struct vh_uring *u)
{
    u->armed = 1;
    __atomic_store_n(u->cq_flags, 0, __ATOMIC_RELAXED);
    fence();
    return !vh_uring_ready(u);
}

void vh_uring_disarm(struct vh_uring *u)
{
    uint64_t count;

    if (!u->armed)
        return;
    u->armed = 0;
    __atomic_store_n(u->cq_flags, IORING_CQ_EVENTFD_DISABLED, __ATOMIC_RELAXED);
    if (read(u->event_fd, &count, sizeof(count)) < 0)
        return; /* none has signalled */
}

static void *map(const struct vh_uring *u, uint64_t size, off_t what)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, u->fd, what);

    return at == MAP_FAILED ? NULL : at;
}

static bool map_rings(struct vh_uring *u, const struct io_uring_params *p)
{
    char *sq, *cq;
    uint32_t *array;

    u->sq_size = p->sq_off.array + p->sq_entries * sizeof(uint32_t);
    u->cq_size = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);
    u->sqes_size = p->sq_entries * sizeof(struct io_uring_sqe);
    u->sq = sq = map(u, u->sq_size, IORING_OFF_SQ_RING);
    u->cq = cq = map(u, u->cq_size, IORING_OFF_CQ_RING);
    u->sqes = map(u, u->sqes_size, IORING_OFF_SQES);
    if (!u->sq || !u->cq || !u->sqes)
        return false;
    u->sq_tail = (uint32_t *)(sq + p->sq_off.tail);
    u->sq_mask = *(uint32_t *)(sq + p->sq_off.ring_mask);
    array = (uint32_t *)(sq + p->sq_off.array);
    for (uint32_t i = 0; i < p->sq_entries; i++)
        array[i] = i;
    u->cq_head = (uint32_t *)(cq + p->cq_off.head);
    u->cq_tail = (uint32_t *)(cq + p->cq_off.tail);
    u->cq_mask = *(uint32_t *)(cq + p->cq_off.ring_mask);
    u->cq_flags = (uint32_t *)(cq + p->cq_off.flags);
    u->cqes = cq + p->cq_off.cqes;
    return true;
}

static int register_with(const struct vh_uring *u, uint32_t what, int32_t fd)
{
    return (int)syscall(SYS_io_uring_register, u->fd, what, &fd, 1);
}

int vh_uring_open(struct vh_uring *u, uint32_t n, int fd)
{
    struct io_uring_params params = {.flags = IORING_SETUP_CLAMP};
    int error;

    *u = (struct vh_uring){.event_fd = -1};
    u->fd = (int)syscall(SYS_io_uring_setup, n, &params);
    if (u->fd < 0)
        return -errno;
    /* Pieces of a buffer are read when an operation is submitted, and completions can be silent. */
    errno = ENOTSUP;
    if (!(params.features & IORING_FEAT_SUBMIT_STABLE) || !params.cq_off.flags || params.sq_entries < n)
        goto fail;
    if (!map_rings(u, &params))
        goto fail;
    __atomic_store_n(u->cq_flags, IORING_CQ_EVENTFD_DISABLED, __ATOMIC_RELAXED);
    u->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (u->event_fd < 0 || register_with(u, IORING_REGISTER_EVENTFD, u->event_fd) ||
        register_with(u, IORING_REGISTER_FILES, fd))
        goto fail;
    return 0;
fail:
    error = errno;
    vh_uring_close(u);
    return -error;
}

void vh_uring_close(struct vh_uring *u)
{
    while (u->running && enter(u, 0, u->running, IORING_ENTER_GETEVENTS) < 0 && errno == EINTR)
        ;
    if (u->sq)
        munmap(u->sq, u->sq_size);
    if (u->cq)
        munmap(u->cq, u->cq_size);
    if (u->sqes)
        munmap(u->sqes, u->sqes_size);
    if (u->event_fd >= 0)
        close(u->event_fd);
    close(u->fd);
    *u = (struct vh_uring){.fd = -1, .event_fd = -1};
}
