/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* A ring of io_uring: shared with the kernel, which does what is queued in it and says what became of it. */

struct vh_uring {
    int32_t fd;       /* -1: closed */
    int32_t event_fd; /* completions signal it while armed */
    void *sq;         /* the rings, mapped */
    void *cq;
    void *sqes;
    uint64_t sq_size;
    uint64_t cq_size;
    uint64_t sqes_size;
    uint32_t *sq_tail;
    uint32_t *cq_head;
    uint32_t *cq_tail;
    uint32_t *cq_flags;
    void *cqes;
    uint32_t sq_mask;
    uint32_t cq_mask;
    uint32_t queued;  /* operations that the kernel has not seen yet */
    uint32_t running; /* operations that it has */
    uint32_t armed;
    uint32_t pad;
};
