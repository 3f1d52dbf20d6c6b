/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* A ring of io_uring for one thread and one file (Linux, include/uapi/linux/io_uring.h), by bare system calls. */
#ifndef VHOST_URING_H
#define VHOST_URING_H

#include <linux/io_uring.h>

#include "core.h"

/* A ring for up to n operations on the file, which is its fixed file 0. Returns 0 or -errno: ENOSYS, EPERM where it
 * is forbidden, ENOTSUP before Linux 5.8. */
int vh_uring_open(struct vh_uring *u, uint32_t n, int fd);

/* Returns when the kernel has finished with all memory that operations named. */
void vh_uring_close(struct vh_uring *u);

/* Hand what is queued to the kernel. Returns false if it would not take all of it: see vh_uring_unqueue(). */
bool vh_uring_submit(struct vh_uring *u);

/* Take back an operation that the kernel would not take. Returns false: there is none. */
bool vh_uring_unqueue(struct vh_uring *u, uint64_t *user_data);

/* Wait until an operation is complete, if any is running. */
void vh_uring_wait(struct vh_uring *u);

/* From here on every completion signals. Returns false if there is one already, which may not have. */
bool vh_uring_arm(struct vh_uring *u);

/* Completions are looked for anyway: none signals any more. */
void vh_uring_disarm(struct vh_uring *u);

static inline bool vh_uring_ready(const struct vh_uring *u)
{
    return __atomic_load_n(u->cq_tail, __ATOMIC_ACQUIRE) != *u->cq_head;
}

/* Take a completion. Returns false: there is none. */
static inline bool vh_uring_next(struct vh_uring *u, uint64_t *user_data, int32_t *result)
{
    const struct io_uring_cqe *cqe = (const struct io_uring_cqe *)u->cqes + (*u->cq_head & u->cq_mask);

    if (!vh_uring_ready(u))
        return false;
    *user_data = cqe->user_data;
    *result = cqe->res;
    __atomic_store_n(u->cq_head, *u->cq_head + 1, __ATOMIC_RELEASE);
    u->running--;
    return true;
}

/* Queue an operation; there is room for as many as the ring was made for. */
static inline void vh_uring_queue(struct vh_uring *u, const struct io_uring_sqe *sqe)
{
    ((struct io_uring_sqe *)u->sqes)[*u->sq_tail & u->sq_mask] = *sqe;
    __atomic_store_n(u->sq_tail, *u->sq_tail + 1, __ATOMIC_RELEASE);
    u->queued++;
}

#endif
