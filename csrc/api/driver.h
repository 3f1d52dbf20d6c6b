/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Virtqueues, driver side. */

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
