/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Native data paths: what serves the chains of one queue without Python. */

struct vh_path {
    /* Serve the VH_POPPED chains of a batch: set written and VH_DONE; leave VH_POPPED what Python is to serve; set
     * VH_FLYING what completes later. Returns the number of chains left to Python. */
    uint32_t (*serve)(struct vh_path *self, struct vh_queue *q, struct vh_batch *b);
    /* Complete what was in flight: VH_FLYING -> VH_DONE and vh_push() its batch. NULL: nothing is ever in flight. */
    uint32_t (*reap)(struct vh_path *self, struct vh_queue *q);
    int32_t event_fd; /* readable when reap() has something to do; -1 */
    uint32_t flying;  /* chains in flight now */
    uint32_t flags;
};
