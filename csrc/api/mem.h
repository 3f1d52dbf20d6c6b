/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Guest memory: an immutable table, built and owned by vhost.mem. */

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
