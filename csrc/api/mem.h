/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Guest memory: tables of regions, which do not change once they are indexed, and the mapping of files. */

struct vh_region { /* a cache line */
    uint64_t gpa;   /* the key: guest-physical address, in a table of translations an I/O virtual address */
    uint64_t size;  /* bytes */
    uint64_t uaddr; /* front-end virtual address */
    uint8_t *host;  /* our mapping; NULL: mapped per use (grants), see vh_defer */
    uint64_t log;   /* guest-physical address of the first byte, for the dirty log; gpa in the memory table */
    uint32_t guard; /* slot of vh_guard_add(), 0: none */
    uint16_t domid; /* Xen: whose memory it is */
    uint8_t writable;
    uint8_t readable; /* 0 only for translations that allow nothing but writing */
    uint64_t spare[2];
};

struct vh_mem {
    uint64_t first;  /* lowest address of all */
    uint64_t span;   /* the highest less the lowest */
    uint16_t *index; /* by address in steps of 1 << shift: the first region that ends behind the step's start */
    uint32_t shift;
    uint32_t steps; /* halvings that leave one candidate of those between two entries of the index */
    uint32_t n;
    uint32_t room; /* regions there is space for */
    uint64_t spare[3];
    struct vh_region region[]; /* sorted by gpa, disjoint */
};

enum vh_mem_put { /* what vh_mem_put() returns, less the position of the other region */
    VH_MEM_FULL = -1,
    VH_MEM_CLASH = -2,
    VH_MEM_CLASH_USER = -0x10002,
};

struct vh_mem *vh_mem_new(const struct vh_mem *from, uint32_t more);
int32_t vh_mem_put(struct vh_mem *m, uint64_t gpa, uint64_t size, uint64_t uaddr);
int32_t vh_mem_back(struct vh_mem *m, uint64_t gpa, uint64_t host, uint32_t guard, uint16_t domid, int writable);
int32_t vh_mem_take(struct vh_mem *m, uint64_t gpa, uint64_t size, uint64_t uaddr);
void vh_mem_index(struct vh_mem *m);
void vh_mem_free(struct vh_mem *m);
int32_t vh_mem_where(const struct vh_mem *m, uint64_t gpa);
int32_t vh_mem_user(const struct vh_mem *m, uint64_t uaddr, uint64_t n);

/* A file, or a part of one, in our address space. */
struct vh_mapping {
    uint64_t host; /* address of the part */
    void *base;    /* the whole pages that hold it */
    size_t length;
    int32_t guard;
    int32_t writable;
    uint32_t aligned; /* its address equals its offset in the file modulo more than a page */
    uint32_t pad;
};

enum vh_map_step { /* what failed */
    VH_MAP_STAT = 1,
    VH_MAP_SHORT = 2,   /* the file ends before the part does: detail = its size */
    VH_MAP_BEYOND = 3,  /* no file has such an offset */
    VH_MAP_RESERVE = 4, /* detail = bytes */
    VH_MAP_PLACE = 5,   /* detail = bytes */
    VH_MAP_GUARD = 6,
};

struct vh_map_error {
    int32_t step; /* enum vh_map_step */
    int32_t code; /* errno */
    uint64_t detail;
};

struct vh_mapping *vh_map(int fd, uint64_t offset, uint64_t size, struct vh_map_error *error);
void vh_unmap(struct vh_mapping *m);
