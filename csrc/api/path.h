/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Native data paths: what serves the chains of a queue without Python. */

struct vh_path { /* begins the structure of every data path; one for each queue */
    /*
     * Serve the VH_POPPED chains of a batch: set written and VH_DONE; leave VH_POPPED what Python is to serve; set
     * VH_FLYING, and count in flying, what completes later. Returns the number of chains left to Python. One that
     * Python serves in steps has to be alone in its batch: vh_put_back() takes out what is behind it, or with what is
     * before it the chain itself.
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

enum vh_off { /* why a lane is not served */
    VH_ON = 0,
    VH_OFF = 1,    /* broken */
    VH_LISTEN = 2, /* it waits for translations, and for kicks: each is told to Python, and nothing is touched */
};

struct vh_lane { /* a queue as its runner sees it */
    struct vh_queue *queue; /* NULL: there is none yet, and the lane only listens */
    struct vh_path *path;   /* NULL: all chains are Python's */
    struct vh_batch *spare; /* batches for the path */
    struct vh_batch *left;  /* VH_S_LEFT: has chains that are Python's */
    uint64_t due;           /* CLOCK_MONOTONIC, nanoseconds: when to look without a kick; 0: never */
    uint64_t popped;        /* of the queue, when Python was last asked to handle it */
    int32_t kick_fd;        /* -1: none, the ring is looked at now and then */
    uint8_t off;            /* enum vh_off */
    uint8_t look;           /* to be looked at, whatever the ring says: it was kicked, or begins */
    uint8_t declined;       /* the device left what is there: it is not offered again before a kick */
    uint8_t asked;          /* Python was asked to handle it: 1, with chains waiting: 2 */
    uint32_t offered;       /* vh_offered() then */
    uint8_t kick_checked;   /* whether to look first if kick_fd has a kick */
    uint8_t single;         /* chains are taken one at a time, because the path puts back what is behind one */
    uint8_t pad[2];
};

enum vh_served {
    VH_S_IDLE = 0,   /* nothing more to do now */
    VH_S_MORE = 1,   /* the budget is used up */
    VH_S_LEFT = 2,   /* vh_lane.left has chains for Python, or pieces to be mapped first */
    VH_S_BROKEN = 3, /* see vh_queue.error */
    VH_S_MISS = 4,   /* a translation is needed, see vh_queue.info and miss */
    VH_S_STEP = 5,   /* the next step of vh_queue.stepping is due */
};

int vh_lane_busy(const struct vh_lane *l); /* whether there is something to do, without asking the kernel */
int vh_serve(struct vh_lane *l, uint32_t budget);
uint32_t vh_path_serve(struct vh_path *p, struct vh_queue *q, struct vh_batch *b);
void vh_lane_return(struct vh_lane *l, struct vh_batch *b);
void vh_drain(struct vh_lane *l); /* wait until nothing is in flight */
