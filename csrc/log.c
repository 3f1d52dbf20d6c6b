/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* The dirty log (vhost-user, "Migration"): a bit for each page of guest memory that was written. */
#include <unistd.h>

#include "core.h"

enum { PAGE = 4096 };

/* Mark the pages of a range; what lies beyond the log is not asked for. The front-end takes bits out meanwhile. */
void vh_log_range(const struct vh_log *log, uint64_t gpa, uint64_t len)
{
    uint64_t first = gpa / PAGE, last = (gpa + len - 1) / PAGE;

    if (!len || gpa + len - 1 < gpa)
        return;
    for (uint64_t page = first; page <= last && page / 8 < log->size; page++)
        __atomic_fetch_or(&log->bits[page / 8], (uint8_t)(1 << page % 8), __ATOMIC_RELEASE);
}

/* What the device says it has written, from the start of the writable part on. */
void vh_log_chain(const struct vh_log *log, const struct vh_batch *b, const struct vh_chain *c)
{
    uint64_t left = c->written;

    for (uint32_t i = c->iov + c->n_read; left && i < c->iov + c->n_read + c->n_write; i++) {
        uint64_t n = b->iov[i].len < left ? b->iov[i].len : left;

        vh_log_range(log, b->log[i], n);
        left -= n;
    }
}

void vh_log_tell(const struct vh_log *log)
{
    if (log->fd >= 0)
        vh_notify(log->fd);
}
