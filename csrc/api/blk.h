/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* The data paths of virtio-blk: nothing, memory, a file by system calls, a file by io_uring. */

struct vh_blk { /* a disk, shared by the paths of its queues */
    uint64_t capacity; /* sectors of 512 bytes */
    uint8_t *memory;   /* its bytes, if they are in memory or mapped */
    int32_t fd;        /* the image; -1: none */
    uint32_t flags;    /* enum vh_blk_flag; may change while requests are served */
    uint8_t serial[20];
    uint32_t block;    /* bytes: what offsets and lengths have to be multiples of, a power of two from 512 */
    uint32_t align;    /* bytes: and addresses in memory, without the page cache; 1: any will do */
    int32_t guard;     /* slot of vh_guard_add() for a mapped image, 0: none */
};

enum vh_blk_flag {
    VH_BLK_READ_ONLY = 1,
    VH_BLK_WRITE_THROUGH = 2,
};

struct vh_blk_path { /* serves one queue */
    struct vh_path path;
    struct vh_blk *disk;
    uint8_t *bounce;       /* where data go that the driver has not aligned; NULL if align is 1 */
    uint64_t bounce_size;
    uint64_t transfers; /* statistics: reads and writes of an image */
    uint64_t calls;     /* and system calls (io_uring: operations) that they and flushes took */
};

struct vh_blk_request { /* a transfer */
    struct vh_chain *chain;
    uint8_t *status;
    const struct vh_iov *data; /* the piece in which the data begins */
    uint64_t skip;             /* bytes before it in that piece */
    uint64_t len;              /* bytes of data */
    uint64_t offset;           /* in the disk */
};

struct vh_blk_slot { /* a request in flight; the first of those that were merged stands for all */
    struct vh_blk_request r;
    struct vh_batch *batch;
    uint64_t done;    /* bytes of the operation that are moved */
    uint64_t len;     /* bytes of the operation */
    uint32_t next;    /* merged with it; UINT32_MAX: none */
    uint8_t kind;
    uint8_t cached;   /* some of it was written without going through the cache to the disk */
    uint8_t pad[2];
};

struct vh_blk_uring {
    struct vh_blk_path blk;
    struct vh_uring ring;
    struct vh_queue *queue;    /* the queue, and the batch with which serve() was called */
    struct vh_batch *serving;
    struct vh_blk_slot *slot;  /* for each request that can be in flight */
    uint32_t free;             /* first free slot */
    uint32_t n_iov;            /* used of iov, until the next submission */
    struct vh_iov iov[2048];
};

void vh_blk_null_init(struct vh_blk_path *p, struct vh_blk *disk);
void vh_blk_memory_init(struct vh_blk_path *p, struct vh_blk *disk);
void vh_blk_file_init(struct vh_blk_path *p, struct vh_blk *disk);
int vh_blk_uring_open(struct vh_blk_uring *u, struct vh_blk *disk, struct vh_blk_slot *slot, uint32_t n);
void vh_blk_uring_close(struct vh_blk_uring *u);
