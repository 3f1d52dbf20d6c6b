/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * Everything Python sees of the C core, in declarations only: the C sources include this file and cffi reads
 * the same text, so the two cannot drift apart. No preprocessor beyond integer constants.
 */

/* ---- guest memory: an immutable table, built and owned by vhost.mem -------------------------------------- */

struct vh_region {
    uint64_t gpa;   /* guest-physical address */
    uint64_t size;  /* bytes */
    uint64_t uaddr; /* front-end virtual address */
    uint8_t *host;  /* our mapping; NULL: mapped per use (grants), see vh_defer */
    uint32_t guard; /* slot of vh_guard_add(), 0: none */
    uint16_t domid; /* Xen: whose memory it is */
    uint8_t writable;
    uint8_t pad;
};

struct vh_mem {
    uint32_t n;
    uint32_t pad;
    struct vh_region region[]; /* sorted by gpa, disjoint */
};

/* ---- truncated files: SIGBUS inside a guarded range becomes zero pages and a mark ------------------------- */

int vh_guard_add(void *addr, size_t len); /* slot > 0, or -errno; installs the handler when first used */
void vh_guard_remove(int slot);           /* before the range is unmapped */
int vh_guard_hit(int slot);               /* 1 once an access in the range has faulted */
uint32_t vh_guard_hits(void);             /* faults in all ranges so far */

/* ---- virtqueue, device side ------------------------------------------------------------------------------ */

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

/* ---- data of a batch ------------------------------------------------------------------------------------- */

uint64_t vh_gather(const struct vh_iov *iov, uint32_t n, uint64_t skip, void *to, uint64_t len);
uint64_t vh_scatter(const struct vh_iov *iov, uint32_t n, uint64_t skip, const void *from, uint64_t len);
uint64_t vh_batch_scatter(struct vh_batch *b, const void *from, uint64_t len);

struct vh_blk {
    int32_t fd;
    uint32_t flags;    /* enum vh_blk_flag */
    uint64_t capacity; /* sectors of 512 bytes */
};

enum vh_blk_flag {
    VH_BLK_READ_ONLY = 1,
    VH_BLK_WRITE_THROUGH = 2,
};

uint32_t vh_blk_run(struct vh_batch *b, const struct vh_blk *disk);

/* ---- grants of Xen: how the deferred pieces of a batch are reached ---------------------------------------- */

enum vh_how {
    VH_MAP = 0,  /* mapped by reference */
    VH_COPY = 1, /* copied by the hypervisor, to memory of our own or from it */
    VH_KEPT = 2, /* mapped since an earlier batch */
    VH_LOST = 3, /* what was written could not be copied to the guest */
};

struct vh_copy { /* laid out as struct xengnttab_grant_copy_segment */
    union vh_copy_end {
        void *virt;
        struct vh_copy_grant {
            uint32_t ref;
            uint16_t offset;
            uint16_t domid;
        } grant;
    } source, dest;
    uint16_t len;
    uint16_t flags;
    int16_t status;
    uint16_t pad;
};

struct vh_grants {
    uint64_t each;     /* in: pieces up to so many bytes are copied */
    uint64_t all;      /* in: and so is one direction, if it has up to so many bytes and both are to be mapped */
    uint64_t bounce;   /* out: bytes of our own that the copies need */
    uint64_t pages[2]; /* out: pages to map, [0] read-only, [1] writable */
    uint64_t segments; /* out: copies from the guest, each within one page */
    uint32_t mixed;    /* out: more than one domain */
};

struct vh_key { /* the same pages with the same protection: what is mapped for one piece serves the other */
    uint32_t ref;
    uint32_t pages;
    uint16_t domid;
    uint8_t write;
    uint8_t pad;
};

int vh_grants_plan(struct vh_defer *d, uint32_t n, struct vh_grants *g);
void vh_grants_refs(const struct vh_defer *d, uint32_t n, int write, uint32_t *refs, uint32_t *domids);
void vh_grants_mapped(struct vh_defer *d, uint32_t n, int write, void *base);
void vh_grants_fetch(struct vh_defer *d, uint32_t n, void *bounce, struct vh_copy *segments);
uint64_t vh_grants_written(struct vh_batch *b);
void vh_grants_store(const struct vh_defer *d, uint32_t n, struct vh_copy *segments);
void vh_grants_stored(struct vh_defer *d, uint32_t n, const struct vh_copy *segments);
uint32_t vh_grants_lose(struct vh_batch *b);
uint32_t vh_grants_keys(const struct vh_defer *d, uint32_t n, uint64_t above, struct vh_key *keys, uint32_t *which);
void vh_grants_kept(struct vh_defer *d, uint32_t n, const uint32_t *which, const uint64_t *pages);
void vh_batch_place(struct vh_batch *b);

/* ---- virtqueue, driver side ------------------------------------------------------------------------------ */

struct vh_buf {
    uint64_t gpa;
    uint32_t len;
    uint32_t write; /* 1: the device writes */
};

struct vh_used {
    uint32_t id;
    uint32_t len;
};

struct vh_driver {
    void *desc;
    void *avail;
    void *used;
    uint16_t *next;       /* num entries: our own list of free descriptors, and the links of chains */
    uint16_t *count;      /* num entries: descriptors of the chain that starts here, 0: none in flight */
    void *tables;         /* num * table_len descriptors for indirect chains, NULL: none */
    uint64_t tables_gpa;
    uint32_t table_len;
    uint32_t num;
    uint32_t features;    /* enum vh_feature */
    uint32_t n_free;
    uint16_t free_head;
    uint16_t avail_idx;
    uint16_t kicked_idx;
    uint16_t last_used;
};

enum vh_driver_error {
    VH_D_FULL = -1,    /* no room for the chain now */
    VH_D_TOO_BIG = -2, /* it will never fit */
    VH_D_BAD_USED = -3 /* the device returned an id that is not in flight, or ran ahead */
};

void vh_driver_init(struct vh_driver *d);
int vh_driver_add(struct vh_driver *d, const struct vh_buf *bufs, uint32_t n);
int vh_driver_publish(struct vh_driver *d);
int vh_driver_poll(struct vh_driver *d, struct vh_used *out, uint32_t max);
void vh_driver_calls_off(struct vh_driver *d);
int vh_driver_calls_on(struct vh_driver *d);
