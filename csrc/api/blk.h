/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* The data paths of virtio-blk: nothing, memory, a file by preadv2, a file by io_uring. */

struct vh_blk { /* a disk, shared by the paths of its queues */
    uint64_t capacity; /* sectors of 512 bytes */
    uint8_t *memory;   /* the bytes of a disk in memory */
    int32_t fd;        /* the image of any other */
    uint32_t flags;    /* enum vh_blk_flag; may change while requests are served */
    uint8_t serial[20];
    uint32_t pad;
};

enum vh_blk_flag {
    VH_BLK_READ_ONLY = 1,
    VH_BLK_WRITE_THROUGH = 2,
};

struct vh_blk_path { /* serves one queue */
    struct vh_path path;
    struct vh_blk *disk;
    uint64_t transfers; /* statistics: reads and writes that went to the file */
    uint64_t calls;     /* and system calls (io_uring: submitted operations) that took them there */
};

void vh_blk_null_init(struct vh_blk_path *p, struct vh_blk *disk);
void vh_blk_memory_init(struct vh_blk_path *p, struct vh_blk *disk);
void vh_blk_file_init(struct vh_blk_path *p, struct vh_blk *disk);
