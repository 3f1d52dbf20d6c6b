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
    VH_E_MISS = 15,          /* no translation yet, the ring is not broken: info = I/O address, length; vh_queue.miss */
    VH_E_INFLIGHT = 16,      /* the inflight region contradicts itself: info = entry, size */
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
    uint16_t head;      /* split: first descriptor; packed: buffer id. The chain's name on the ring */
    uint16_t slots;     /* packed: entries of the ring that it takes */
    uint16_t entry;     /* packed, inflight: first entry of the region that describes it */
    uint16_t last;      /* and the last one */
    uint16_t turn;      /* IN_ORDER: which it is of those taken */
    uint8_t state;      /* enum vh_state */
    uint8_t write_seen;
};

enum vh_state {
    VH_OPEN = 0,   /* its indirect table waits for vh_expand() */
    VH_POPPED = 1, /* with the device */
    VH_DONE = 2,   /* completed, waits for vh_push() */
    VH_PUSHED = 3, /* back with the driver */
    VH_FLYING = 4, /* with a native data path that completes it later */
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
    uint32_t cap_iov;   /* capacity of iov[] and log[] */
    uint32_t cap_defer; /* capacity of defer[] */
    struct vh_chain *chain;
    struct vh_iov *iov;
    uint64_t *log;      /* by piece: its guest-physical address, for the dirty log */
    struct vh_defer *defer;
    struct vh_batch *next; /* in vh_queue.spare */
    uint32_t index;        /* its number with its owner */
    uint32_t again;        /* its chains were in flight before */
};

enum vh_kind {
    VH_SPLIT = 0,
    VH_SPLIT_BIG = 1, /* of a legacy driver on a big-endian machine */
    VH_PACKED = 2,
};

enum vh_feature {
    VH_F_INDIRECT = 1,
    VH_F_EVENT_IDX = 2,
    VH_F_IN_ORDER = 4,
    VH_F_TRANSLATED = 8, /* addresses are I/O addresses, and mem holds what is known of their translation */
    VH_F_LOG_DATA = 16,  /* what the device writes to buffers goes to the dirty log */
    VH_F_LOG_USED = 32,  /* what it writes to the ring does */
};

/* The dirty log: a bit for each page of 4096 bytes. */
struct vh_log {
    uint8_t *bits;
    uint64_t size;   /* bytes */
    int32_t fd;      /* signalled when pages were marked, -1: none */
    uint32_t pad;
};

/* A chain that was taken before this process, or the connection before, began: it is given to the device again. */
struct vh_again {
    uint64_t counter;
    uint16_t entry; /* split: its head; packed: first entry of the region */
    uint16_t slots; /* packed: entries of the ring, and of the region */
    uint16_t pad[2];
};

/* The region in which a ring records what is in flight (vhost-user, "Inflight I/O tracking"), and our own side of it. */
struct vh_inflight {
    void *region;           /* shared with the front-end; NULL: none */
    uint64_t counter;       /* the next chain's */
    struct vh_again *again; /* num entries */
    uint16_t *next;         /* packed, num entries: our own list of free entries, the region's is only written */
    void *table;            /* packed, num descriptors: where a chain that is given again is laid out */
    uint32_t n_again;       /* chains to be given again */
    uint32_t given;         /* of them, already given */
    uint16_t free;          /* packed: first free entry */
    uint16_t last_batch;    /* split: head of the list of the last batch */
    uint32_t pad;
};

/* IN_ORDER: a chain that was taken, in the order of taking. */
struct vh_turn {
    uint32_t written;
    uint16_t head;
    uint16_t slots;
    uint16_t entry;
    uint16_t last;
    uint8_t done;
    uint8_t whole; /* all that could be written was: it may be skipped */
    uint8_t pad[2];
};

struct vh_queue {
    uint8_t before[64]; /* what somebody else writes is on another cache line */
    const struct vh_mem *mem;  /* vh_queue_swap() changes it at any time */
    const struct vh_mem *held; /* the one that is looked at just now: keep it */
    void *desc;  /* ring memory in our address space: descriptors of either kind */
    void *avail; /* packed: the driver's event suppression */
    void *used;  /* packed: the device's event suppression */
    uint32_t num;        /* ring size; split: a power of two; up to 32768 */
    uint32_t max_chain;  /* descriptors a chain may have */
    uint32_t features;   /* enum vh_feature */
    int32_t call_fd;     /* -1: the driver polls */
    uint16_t next_avail; /* next entry to take: of the avail ring, packed: of the ring */
    uint16_t next_used;  /* next entry to fill: of the used ring, packed: of the ring */
    uint16_t signalled;  /* next_used at the last notification */
    uint8_t kind;        /* enum vh_kind */
    uint8_t avail_wrap;  /* packed: the wrap counters that belong to next_avail and next_used */
    uint8_t used_wrap;
    uint8_t call_checked; /* whether to look first if call_fd takes a notification */
    uint8_t signalled_valid;
    uint8_t error; /* enum vh_error: the ring is broken */
    uint8_t miss;  /* VH_E_MISS: 1 for reading, 2 for writing */
    uint8_t quiet; /* the driver was told not to kick */
    uint8_t stepping; /* Python serves the newest chain in steps: it takes the next one, and nothing else is popped */
    uint8_t pad[5];
    uint32_t guard_hits;
    uint64_t info[2]; /* details of the error, or of the miss */
    uint64_t popped;  /* statistics, chains */
    uint64_t pushed;
    uint64_t calls;
    uint64_t call_errors; /* the call fd would not take a notification */
    struct vh_inflight inflight;
    const struct vh_log *log;  /* NULL: none */
    uint64_t log_used;         /* guest-physical address of the used ring, packed: of the device's event suppression */
    uint64_t log_desc;         /* packed: of the ring */
    void *scratch;             /* max_chain descriptors: an indirect table that crosses region borders */
    struct vh_turn *turns;     /* IN_ORDER: num_turns entries, a power of two of at least num */
    uint32_t num_turns;
    uint16_t turn_taken;       /* the next chain's turn */
    uint16_t turn_used;        /* the turn of the chain that is returned next */
    uint32_t taken;            /* chains with the device, packed: entries of the ring */
    uint32_t pad2;
    uint8_t after[64];
};

/* What a chain that is available lacks: I/O addresses without a translation, or without that permission. */
struct vh_lack {
    uint64_t addr;
    uint64_t len;
    uint32_t chain; /* 0: the next one to be taken */
    uint32_t write;
};

int vh_queue_init(struct vh_queue *q);   /* once all of the above is set; -(enum vh_error) if the inflight region lies */
const struct vh_mem *vh_queue_swap(struct vh_queue *q, const struct vh_mem *mem); /* the one that is still looked at */
int vh_pop(struct vh_queue *q, struct vh_batch *b, uint32_t max);
int vh_expand(struct vh_queue *q, struct vh_batch *b);
void vh_put_back(struct vh_queue *q, struct vh_batch *b, uint32_t first); /* its chains from `first` on, the newest */
void vh_unpop(struct vh_queue *q, struct vh_batch *b); /* put back all of a batch, the newest */
int vh_push(struct vh_queue *q, struct vh_batch *b);
uint32_t vh_batch_left(const struct vh_batch *b);
void vh_kicks_off(struct vh_queue *q);
int vh_kicks_on(struct vh_queue *q);
void vh_kicks_past(struct vh_queue *q);            /* for chains behind those that are there and stay there */
uint32_t vh_offered(const struct vh_queue *q);     /* changes when more chains are there, while none is popped */
int vh_available(const struct vh_queue *q);

uint32_t vh_lacking(const struct vh_queue *q, const struct vh_mem *mem, struct vh_lack *at, uint32_t max);

/* A region for the chains in flight of one ring: bytes, and its first contents. */
uint64_t vh_inflight_size(uint32_t num, int packed);
void vh_inflight_format(void *region, uint32_t num, int packed);
