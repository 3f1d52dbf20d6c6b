/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Who wants to be told what: calls to the driver, kicks from it (virtio 1.3, 2.7.7, 2.7.10, 2.8.10). */
#include "core.h"

static bool wanted_split(struct vh_queue *q, bool first, uint16_t old, bool big)
{
    struct avail *avail = q->avail;

    if (!(q->features & VH_F_EVENT_IDX))
        return !(load16(&avail->flags, big) & AVAIL_NO_INTERRUPT);
    return first || event_passed(load16(used_event(avail, q->num), big), q->next_used, old);
}

static bool wanted_packed(struct vh_queue *q, bool first, uint16_t old)
{
    const struct packed_event *event = q->avail;
    uint16_t flags = load16(&event->flags, false);

    if (flags != EVENT_DESC || !(q->features & VH_F_EVENT_IDX))
        return flags != EVENT_DISABLE;
    return first || packed_event_passed(load16(&event->off_wrap, false), q->next_used, q->used_wrap, old, q->num);
}

/* Whether the driver wants to hear of the used elements published since the last time. */
bool vh_call_wanted(struct vh_queue *q)
{
    uint16_t old = q->signalled;
    bool first = !q->signalled_valid;

    fence();
    q->signalled = q->next_used;
    q->signalled_valid = 1;
    return q->kind == VH_PACKED ? wanted_packed(q, first, old) : wanted_split(q, first, old, q->kind == VH_SPLIT_BIG);
}

static void log_at(const struct vh_queue *q, uint64_t offset)
{
    if (q->features & VH_F_LOG_USED)
        vh_log_range(q->log, q->log_used + offset, 2);
}

/* Stop asking for kicks while the ring is served; with event idx the old position already does that. */
void vh_kicks_off(struct vh_queue *q)
{
    if (q->quiet)
        return;
    q->quiet = 1;
    if (q->kind == VH_PACKED) {
        struct packed_event *event = q->used;

        store16(&event->flags, EVENT_DISABLE, false);
        log_at(q, 2);
    } else if (!(q->features & VH_F_EVENT_IDX)) {
        struct used *used = q->used;

        store16(&used->flags, USED_NO_NOTIFY, q->kind == VH_SPLIT_BIG);
        log_at(q, 0);
    }
}

static void ask_packed(struct vh_queue *q)
{
    struct packed_event *event = q->used;

    if (q->features & VH_F_EVENT_IDX) {
        store16(&event->off_wrap, (uint16_t)(q->next_avail | (q->avail_wrap ? WRAP : 0)), false);
        store16_release(&event->flags, EVENT_DESC, false);
        log_at(q, 0);
    } else {
        store16(&event->flags, EVENT_ENABLE, false);
    }
    log_at(q, 2);
}

static void ask_split(struct vh_queue *q, bool big)
{
    struct used *used = q->used;

    if (q->features & VH_F_EVENT_IDX) {
        store16(avail_event(used, q->num), q->next_avail, big);
        log_at(q, sizeof(*used) + q->num * sizeof(used->ring[0]));
    } else {
        store16(&used->flags, 0, big);
        log_at(q, 0);
    }
}

/* Ask for kicks again. Returns 1 if chains came meanwhile, for which no kick may follow. */
int vh_kicks_on(struct vh_queue *q)
{
    q->quiet = 0;
    if (q->kind == VH_PACKED)
        ask_packed(q);
    else
        ask_split(q, q->kind == VH_SPLIT_BIG);
    fence();
    return vh_available(q);
}

/* How far the driver has come: its index; packed: entries that are available. */
uint32_t vh_offered(const struct vh_queue *q)
{
    const struct packed_desc *ring = q->desc;
    const struct avail *avail = q->avail;
    uint32_t at = q->next_avail, n = 0;
    bool wrap = q->avail_wrap;

    if (q->kind != VH_PACKED)
        return load16_acquire(&avail->idx, q->kind == VH_SPLIT_BIG);
    for (; n < q->num && packed_is_avail(load16_acquire(&ring[at].flags, false), wrap); n++) {
        if (++at == q->num) {
            at = 0;
            wrap = !wrap;
        }
    }
    return n;
}

/* With event idx a driver that has gone past the position asked for does not kick any more. */
void vh_kicks_past(struct vh_queue *q)
{
    q->quiet = 0;
    if (!(q->features & VH_F_EVENT_IDX)) {
        vh_kicks_on(q);
        return;
    }
    if (q->kind == VH_PACKED) {
        struct packed_event *event = q->used;

        store16(&event->flags, EVENT_ENABLE, false);
        log_at(q, 2);
    } else {
        struct used *used = q->used;

        store16(avail_event(used, q->num), (uint16_t)vh_offered(q), q->kind == VH_SPLIT_BIG);
        log_at(q, sizeof(*used) + q->num * sizeof(used->ring[0]));
    }
    fence();
}

int vh_available(const struct vh_queue *q)
{
    const struct packed_desc *ring = q->desc;
    const struct avail *avail = q->avail;

    if (q->inflight.given < q->inflight.n_again)
        return 1;
    if (q->kind == VH_PACKED)
        return packed_is_avail(load16_acquire(&ring[q->next_avail].flags, false), q->avail_wrap);
    return load16_acquire(&avail->idx, q->kind == VH_SPLIT_BIG) != q->next_avail;
}
