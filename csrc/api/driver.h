/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Virtqueues, driver side. */

struct vh_buf {
    uint64_t gpa;
    uint32_t len;
    uint32_t write; /* 1: the device writes */
};

struct vh_used {
    uint32_t id;  /* what vh_driver_add() returned for the chain */
    uint32_t len; /* bytes the device says it has written */
};

struct vh_flight { /* our own record of a chain, at its id: nothing that a device can write is ever followed */
    uint64_t seq;   /* its number since vh_driver_init(); UINT64_MAX: not on the ring */
    uint32_t room;  /* bytes the device may write, at most UINT32_MAX */
    uint16_t next;  /* next free id; split: next descriptor of the chain as well */
    uint16_t count; /* entries of the ring it takes */
};

struct vh_driver {
    void *desc;  /* descriptor table; packed: the ring */
    void *avail; /* avail ring; packed: the driver's event suppression */
    void *used;  /* used ring; packed: the device's event suppression */
    struct vh_flight *flight; /* num entries */
    uint16_t *order;          /* IN_ORDER, num entries: ids in the order in which they were added */
    void *tables;             /* num * table_len descriptors for indirect chains, NULL: none */
    uint64_t tables_gpa;
    uint32_t table_len;
    uint32_t num;        /* ring size; split: a power of two; up to 32768 */
    uint32_t features;   /* enum vh_feature */
    uint8_t kind;        /* enum vh_kind */
    uint8_t check;       /* a device that says it wrote more than it could is an error */
    uint8_t keep;        /* split, not IN_ORDER: what comes back keeps its descriptors, for vh_driver_again() */
    uint8_t batch;       /* IN_ORDER: all up to batch_end have come back and are not yet reported */
    struct vh_used batch_end;
    uint64_t added;      /* chains so far: added, */
    uint64_t shown;      /* made available, */
    uint64_t returned;   /* and come back */
    uint32_t n_free;     /* entries of the ring */
    uint16_t free_id;    /* first of the free ids */
    uint16_t avail_idx;  /* split: next entry of the avail ring to fill; packed: of the ring */
    uint16_t kicked_idx; /* the same when chains were last made available */
    uint16_t last_used;  /* next used element to look at; packed: entry of the ring */
    uint16_t used_seen;  /* split: the used index as it was last read */
    uint16_t first;      /* packed: entry whose flags make available all that was added, */
    uint16_t first_flags; /* and these flags */
    uint8_t avail_wrap;  /* packed: the wrap counters of avail_idx and last_used */
    uint8_t used_wrap;
    uint16_t order_in;   /* IN_ORDER: next entry of order[] to fill, and to take */
    uint16_t order_out;
    uint8_t pad[6];
};

enum vh_driver_error {
    VH_D_FULL = -1,     /* no room for the chain now */
    VH_D_TOO_BIG = -2,  /* it will never fit */
    VH_D_BAD_USED = -3, /* the device returned an id that is not in flight, or ran ahead */
    VH_D_BAD_LEN = -4   /* it says that it wrote more than it could */
};

void vh_driver_init(struct vh_driver *d);
int vh_driver_add(struct vh_driver *d, const struct vh_buf *bufs, uint32_t n);
void vh_driver_again(struct vh_driver *d, uint32_t id);
void vh_driver_free(struct vh_driver *d, uint32_t id);
int vh_driver_publish(struct vh_driver *d);
int vh_driver_poll(struct vh_driver *d, struct vh_used *out, uint32_t max);
void vh_driver_calls_off(struct vh_driver *d);
int vh_driver_calls_on(struct vh_driver *d);

/* Move the marks of a dirty log, 8 bytes at a time and each at once, to `into`. Returns the number of pages. */
uint64_t vh_dirty_take(void *log, uint64_t words, uint64_t *into);
