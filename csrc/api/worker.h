/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Workers: wait for the queues of a group and serve them, without the interpreter lock. */

enum vh_polling {
    VH_POLL_NEVER = 0,
    VH_POLL_ADAPTIVE = 1, /* before sleeping, for up to poll_ns, where that pays */
    VH_POLL_ALWAYS = 2,   /* instead of sleeping */
};

enum vh_event {
    VH_W_STOP = 0,   /* vh_worker_stop() was called */
    VH_W_HANDLE = 1, /* Python is to handle lane `which` */
    VH_W_SERVED = 2, /* lane `which` needs Python: vh_worker.served says what for */
    VH_W_KICK = 3,   /* the kick descriptor of lane `which` has failed: vh_worker.error, 0: its other end was closed */
    VH_W_HEARD = 4,  /* lane `which`, which only listens, was kicked */
};

struct vh_worker {
    struct vh_lane **lane;
    void *poll;          /* struct pollfd[2 * n + 1]: 8 bytes each */
    uint32_t n;
    uint32_t next;       /* lane that is looked at first */
    uint32_t which;
    int32_t served;      /* enum vh_served */
    int32_t error;
    int32_t stop_fd;     /* eventfd that vh_worker_stop() signals */
    uint32_t stop;
    uint32_t polling;    /* enum vh_polling */
    uint64_t poll_ns;    /* longest polling before a sleep */
    uint64_t window;     /* polling before the next sleep, adapted */
    uint32_t missed;     /* times in a row that polling found nothing */
    uint32_t skip;       /* sleeps to come without polling */
    uint32_t skipped;    /* sleeps without polling after the last failures */
    uint32_t rounds;     /* over the lanes */
    uint64_t since;      /* since when fruitless polling is counted, and its nanoseconds */
    uint64_t wasted;
    uint64_t polls;      /* statistics: times polled, of them found something, sleeps */
    uint64_t hits;
    uint64_t sleeps;
};

int vh_worker_run(struct vh_worker *w);
void vh_worker_stop(struct vh_worker *w); /* from any thread: vh_worker_run() returns soon */
int vh_prefer_node(uint32_t node);
