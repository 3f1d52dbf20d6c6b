/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* The data path of virtio-rng: the kernel's random numbers. */

struct vh_rng_path {
    struct vh_path path;
    uint64_t calls;       /* statistics: of getrandom(2) */
    uint8_t stock[16384]; /* bytes for several requests, wiped when they are given */
};

void vh_rng_init(struct vh_rng_path *p);
