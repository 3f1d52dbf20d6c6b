/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Virtqueues, device side. */

enum vh_error {
    VH_OK = 0,
    VH_E_AVAIL_JUMP = 1,     /* avail index ahead by more than the ring holds: info = index, last seen */
    VH_E_HEAD = 2,           /* head outside the ring: info = head, size */
    VH_E_NEXT = 3,           /* next outside the table: info = next, table entries */
    VH_E_LOOP = 4,           /* descriptors of the chain loop: info = head, entries walked */
    VH_E_CHAIN = 5,          /* chain longer than allowed: info = head, limit */
    VH_E_ORDER = 6,          /* writable before readable: info = head, index */
    VH_E_NESTED = 7,         /* indirect inside indirect: info = head, index */
    VH_E_INDIRECT_NEXT = 8,  /* INDIRECT and NEXT in one descriptor: info = head, index */
    VH_E_INDIRECT_LEN = 9,   /* table length 0, not a multiple of 16 or too long: info = head, length */
    VH_E_NO_INDIRECT = 10,   /* INDIRECT, but the feature was not negotiated: info = head, index */
    VH_E_UNMAPPED = 11,      /* buffer or table not (wholly) in guest memory: info = address, length */
    VH_E_PIECES = 12,        /* one chain crosses more region borders than a batch holds: info = head, capacity */
    VH_E_TRUNCATED = 13,     /* the file behind guest memory is shorter than its region: info = gpa, size */
    VH_E_READONLY = 14,      /* writable buffer in a read-only region: info = address, length */
};

struct vh_iov { /* laid out as struct iovec */
    void *base;
    size_t len;
};

struct vh_chain {
    uint32_t iov;       /* first of this chain's pieces in vh_batch.iov, readable ones first */
    uint32_t n_read;    /* pieces the device may read */
    uint32_t n_write;   /* pieces the device may write */
    uint32_t written;   /* bytes written: the length of the used element */
    uint64_t read_len;  /* bytes in the readable pieces */
    uint64_t write_len; /* bytes in the writable pieces */
    uint32_t descs;     /* descriptors walked */
    uint16_t head;
    uint8_t state; /* enum vh_state */
    uint8_t write_seen;
};

enum vh_state {
    VH_OPEN = 0,   /* its indirect table waits for vh_expand() */
    VH_POPPED = 1, /* with the device */
    VH_DONE = 2,   /* completed, waits for vh_push() */
    VH_PUSHED = 3, /* back with the driver */
    VH_FLYING = 4, /* with the device, which completes it later */
};

/* A piece of guest memory that must be made reachable for the batch (grants): all of a batch together. */
struct vh_defer {
    uint64_t gpa;
    uint64_t at;    /* bytes before it in the readable or writable part of its chain */
    uint32_t len;
    uint32_t chain; /* index in vh_batch.chain */
    uint32_t iov;   /* index in vh_batch.iov; UINT32_MAX: the chain's indirect table */
    uint16_t domid;
    uint8_t write;
    uint8_t how;    /* enum vh_how */
    void *host;     /* where it is, once it is reachable */
};

struct vh_batch {
    uint32_t n;         /* chains */
    uint32_t n_iov;     /* pieces */
    uint32_t n_defer;   /* pieces still to be mapped */
    uint32_t n_tables;  /* of them, indirect tables: map these, then vh_expand() */
    uint32_t pending;   /* chains not yet pushed */
    uint32_t cap;       /* capacity of chain[] */
    uint32_t cap_iov;   /* capacity of iov[] and defer[] */
    uint32_t pad;
    struct vh_batch *next;
    struct vh_chain *chain;
    struct vh_iov *iov;
    struct vh_defer *defer;
};

struct vh_queue {
    const struct vh_mem *mem;
    void *desc;  /* ring memory in our address space */
    void *avail;
    void *used;
    uint32_t num;        /* ring size, a power of two up to 32768 */
    uint32_t max_chain;  /* descriptors a chain may have */
    uint32_t features;   /* enum vh_feature */
    int32_t call_fd;     /* -1: the driver polls */
    uint16_t next_avail; /* next entry of the avail ring to take */
    uint16_t next_used;  /* next entry of the used ring to fill */
    uint16_t signalled;  /* used index at the last notification */
    uint8_t signalled_valid;
    uint8_t error; /* enum vh_error: the ring is broken */
    uint32_t guard_hits;
    uint64_t info[2]; /* details of the error */
    uint64_t popped;  /* statistics, chains */
    uint64_t pushed;
    uint64_t calls;
    uint64_t call_errors; /* the call fd would not take a notification */
};

enum vh_feature {
    VH_F_INDIRECT = 1,
    VH_F_EVENT_IDX = 2,
};

int vh_pop(struct vh_queue *q, struct vh_batch *b, uint32_t max);
int vh_expand(struct vh_queue *q, struct vh_batch *b);
int vh_push(struct vh_queue *q, struct vh_batch *b);
uint32_t vh_batch_left(const struct vh_batch *b);
void vh_kicks_off(struct vh_queue *q);
int vh_kicks_on(struct vh_queue *q);
int vh_available(const struct vh_queue *q);
