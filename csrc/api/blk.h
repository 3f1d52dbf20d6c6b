/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* The data path of virtio-blk. */

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
