/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* What the C sources share: the API, and what one of them does for the others. */
#ifndef VHOST_CORE_H
#define VHOST_CORE_H

#include "ring.h"

/*
 * Everything Python sees of the C core, in declarations only: the C sources include these files and cffi reads the
 * same text, so the two cannot drift apart. No preprocessor beyond integer constants. Order: csrc/build.py.
 */
#include "api/mem.h"
#include "api/guard.h"
#include "api/queue.h"
#include "api/path.h"
#include "api/data.h"
#include "api/uring.h"
#include "api/blk.h"
#include "api/rng.h"
#include "api/grants.h"
#include "api/driver.h"
#include "api/bench.h"
#include "api/worker.h"
#include "api/notifier.h"
#include "api/stream.h"
#include "api/net.h"
#include "api/switch.h"

#include "mem_find.h"

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* The compiler keeps stores on either side apart. A process that is killed has done all before some instruction and
 * nothing after it, so for who reads what it left behind no more than this is needed. */
static inline void in_program_order(void)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

int vh_fail(struct vh_queue *q, enum vh_error error, uint64_t a, uint64_t b);

/* ---- pop.c ---------------------------------------------------------------------------------------------------- */

bool vh_packed_is_new(const struct vh_queue *q);

/* ---- data.c: copies between a flat buffer and pieces ---------------------------------------------------------- */

uint64_t vh_gather(const struct vh_iov *iov, uint32_t n, uint64_t skip, void *to, uint64_t len);
uint64_t vh_scatter(const struct vh_iov *iov, uint32_t n, uint64_t skip, const void *from, uint64_t len);

/* ---- inflight.c: what is in flight, recorded for who comes after us ----------------------------------------- */

int vh_inflight_recover(struct vh_queue *q);
void vh_inflight_taken_split(struct vh_queue *q, uint16_t head);
void vh_inflight_taken_packed(struct vh_queue *q, struct vh_chain *c);
void vh_inflight_untaken(struct vh_queue *q, const struct vh_chain *c);
void vh_inflight_again_packed(struct vh_queue *q, struct vh_chain *c, const struct vh_again *again);
void vh_inflight_using(struct vh_queue *q, uint16_t head, uint16_t entry, uint16_t last);
void vh_inflight_publishing(struct vh_queue *q, uint16_t next_used, bool wrap);
void vh_inflight_used(struct vh_queue *q, uint16_t head, uint16_t entry);
void vh_inflight_published(struct vh_queue *q);

/* ---- log.c: the dirty log ----------------------------------------------------------------------------------- */

void vh_log_range(const struct vh_log *log, uint64_t gpa, uint64_t len);
void vh_log_chain(const struct vh_log *log, const struct vh_batch *b, const struct vh_chain *c);
void vh_log_tell(const struct vh_log *log);

/* ---- notify.c ----------------------------------------------------------------------------------------------- */

bool vh_call_wanted(struct vh_queue *q);

#endif
