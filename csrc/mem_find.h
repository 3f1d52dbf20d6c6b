/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * Which region an address is in, for any 64-bit address and in a few nanoseconds: the index of the table leaves
 * one or two candidates where regions are of similar size, and at worst all of them. Every look-up in a table
 * takes the same steps, so none is mispredicted.
 */
#ifndef VHOST_MEM_FIND_H
#define VHOST_MEM_FIND_H

/* Included by core.h, behind the API. */

/* The region that holds this address, or NULL. */
static inline const struct vh_region *vh_mem_find(const struct vh_mem *m, uint64_t gpa)
{
    uint64_t at = gpa - m->first;
    const struct vh_region *r = m->region;

    if (at > m->span)
        return NULL;
    const uint16_t *entry = &m->index[at >> m->shift];
    uint32_t left = (uint32_t)entry[1] - entry[0] + 1;

    r += entry[0];
    for (uint32_t step = m->steps; step; step--) {
        uint32_t half = left / 2;

        r += r[half].gpa <= gpa ? half : 0;
        left -= half;
    }
    return gpa - r->gpa < r->size ? r : NULL;
}

#endif
