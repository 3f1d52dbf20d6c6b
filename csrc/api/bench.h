/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* A closed-loop load generator over the driver's side of a queue: a number of requests always in flight. */

enum vh_bench_kind {
    VH_BENCH_BLK_READ = 0,
    VH_BENCH_BLK_WRITE = 1,
    VH_BENCH_FILL = 2, /* the device fills one buffer: entropy, received frames */
    VH_BENCH_TAKE = 3, /* the device takes one buffer: sent frames */
};

enum vh_bench_end {
    VH_BENCH_OK = 0,
    VH_BENCH_HUNG = -1,        /* nothing came back for longer than hang */
    VH_BENCH_GONE = -2,        /* the link or the err descriptor has something to say: the peer ended the ring */
    VH_BENCH_BAD_USED = -3,    /* the device returned a chain that is not in flight, or ran ahead */
    VH_BENCH_FULL = -4,        /* the ring does not hold the requests */
    VH_BENCH_INTERRUPTED = -5, /* a signal came while it slept */
    VH_BENCH_SYSTEM = -6,      /* a system call failed: info = errno */
};

enum vh_bench_fault {
    VH_BENCH_NO_FAULT = 0,
    VH_BENCH_BAD_STATUS = 1, /* blk: info = status byte, sector */
    VH_BENCH_BAD_LENGTH = 2, /* used length: info = length, most there can be or, of a read, what it must be */
    VH_BENCH_BAD_DATA = 3,   /* blk: info = what a sector began with, sector; fill: nothing was written */
};

enum { VH_BENCH_BUFS = 3 };
/* Latencies in ticks; 64 buckets from one power of two to the next, so 1.6 % wide. */
enum { VH_BENCH_BUCKETS = 2560, VH_BENCH_SUB = 64 };

/* A request that is made over and over, its buffers laid out beforehand. */
struct vh_bench_slot {
    struct vh_buf buf[VH_BENCH_BUFS];
    uint32_t n;       /* buffers */
    uint32_t size;    /* bytes of data */
    uint8_t *header;  /* blk only, as is status */
    uint8_t *data;
    uint8_t *status;
    uint64_t sector;
    uint64_t started; /* ticks */
    int32_t id;       /* its chain, if the driver keeps that, else -1 */
    uint8_t sampled;
    uint8_t pad[3];
};

struct vh_bench {
    struct vh_driver *driver;
    struct vh_bench_slot *slot; /* depth of them, all idle between two runs */
    uint16_t *owner;           /* entries of the ring: which slot a chain's id belongs to */
    uint16_t *idle;            /* depth entries */
    struct vh_used *used;      /* depth entries */
    uint64_t *histogram;       /* VH_BENCH_BUCKETS, added to */
    uint32_t depth;
    uint32_t kind;             /* enum vh_bench_kind */
    uint32_t poll;             /* 1: spin; 0: sleep until the device calls */
    uint32_t random;           /* blk: places, 0: one after the other */
    uint32_t min_length;       /* VH_BENCH_FILL: bytes that a used length must name at least */
    uint32_t sample;           /* look at the data of every so many requests; 0: never */
    uint64_t salt;             /* blk: a sector begins with its number, exclusive or this */
    uint64_t sectors;          /* blk: capacity, a multiple of a request's */
    int32_t kick_fd;
    int32_t call_fd;
    int32_t epoll_fd;          /* edge-triggered: call_fd, and descriptors whose readiness ends the load */
    uint32_t pad0;
    uint64_t ticks;            /* how long to keep it up; what is in flight then is waited for */
    uint64_t limit;            /* requests after which to end, 0: none */
    uint64_t hang;             /* ticks without a request back, see VH_BENCH_HUNG */
    /* State that a run hands to the next. */
    uint64_t next_sector;
    uint64_t seed;             /* not 0 */
    uint64_t places;           /* scratch: how many requests the disk holds */
    /* Results of a run. */
    uint64_t done;
    uint64_t bytes;
    uint64_t elapsed;          /* ticks */
    uint64_t kicks;
    uint64_t sleeps;
    uint64_t lost;             /* sleeps that ended by their timeout although requests had come back */
    uint64_t sampled;
    uint64_t faults;
    uint32_t fault;            /* enum vh_bench_fault: the first */
    uint32_t pad;
    uint64_t info[2];
};

int vh_bench_run(struct vh_bench *l);
uint64_t vh_bench_ticks(void);

enum { VH_BENCH_FDS = 8 };

/* A message of the control plane, ready to be sent. */
struct vh_bench_message {
    uint8_t *data;         /* the header and what follows */
    uint32_t size;
    uint32_t answer;       /* bytes that follow the header of the answer, 8 or more; 0: there is none */
    uint32_t must_succeed; /* 1: the answer is a word, which must be 0 */
    uint32_t n_fds;
    int32_t fds[VH_BENCH_FDS];
};

int64_t vh_bench_play(int fd, const struct vh_bench_message *message, uint32_t n, uint32_t *at, uint64_t *value);
