/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Native data paths: what serves the chains of a queue without Python. */

struct vh_path { /* begins the structure of every data path; one for each queue */
    /*
     * Serve the VH_POPPED chains of a batch: set written and VH_DONE; leave VH_POPPED what Python is to serve; set
     * VH_FLYING, and count in flying, what completes later. Returns the number of chains left to Python.
     * NULL: the path takes chains by itself when reap() is called.
     */
    uint32_t (*serve)(struct vh_path *self, struct vh_queue *q, struct vh_batch *b);
    /*
     * Complete what was in flight: VH_DONE and vh_push(); a batch with nothing pending goes to idle. Without serve:
     * pop, serve and push. Returns the number of chains completed, or -(enum vh_error) from vh_pop(). NULL: nothing
     * is ever in flight.
     */
    int (*reap)(struct vh_path *self, struct vh_queue *q);
    int (*ready)(const struct vh_path *self); /* whether reap() has something to do; NULL: look at event_fd */
    struct vh_batch *idle; /* batches that reap() has finished with */
    int32_t event_fd;      /* readable when reap() has something to do; -1: none */
    uint32_t flying;       /* chains in flight */
    uint32_t starved;      /* without serve: the queue had no chains, so event_fd is not looked at until it has */
    uint32_t pad;
};
