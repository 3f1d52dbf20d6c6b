/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Grants of Xen: how the deferred pieces of a batch are reached. */

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
