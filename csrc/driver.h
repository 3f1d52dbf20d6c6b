/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* What a kind of ring is to its driver. Everything else about virtqueues is the same for all, see driver.c. */
#ifndef VHOST_DRIVER_H
#define VHOST_DRIVER_H

#include "ring.h"
#include "api/queue.h"
#include "api/driver.h"

struct ring_driver {
    /* An id for a chain that takes n free entries of the ring. */
    uint16_t (*take_id)(struct vh_driver *d, uint32_t n);
    /* An id, with the entries of its chain, is free again. */
    void (*give_id)(struct vh_driver *d, uint16_t id);
    /* Write the chain. The device does not see it before show(); without bufs: split, they are there already. */
    void (*put)(struct vh_driver *d, uint16_t id, const struct vh_buf *bufs, uint32_t n, uint16_t flags);
    /* Write an indirect table. */
    void (*fill)(const struct vh_driver *d, void *table, const struct vh_buf *bufs, uint32_t n);
    /* Make available what was put; whether the device wants a kick. */
    bool (*show)(struct vh_driver *d);
    /* Begin to look for used elements; false if the device ran ahead. */
    bool (*look)(struct vh_driver *d);
    /* The next used element, unchecked; false if there is none. */
    bool (*next)(const struct vh_driver *d, struct vh_used *used);
    /* Go past a chain that came back. */
    void (*pass)(struct vh_driver *d, uint32_t count);
    void (*calls_off)(struct vh_driver *d);
    void (*calls_on)(struct vh_driver *d);
};

extern const struct ring_driver vh_split_driver, vh_split_big_driver, vh_packed_driver;

#endif
