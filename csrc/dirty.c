/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* The dirty log as its owner reads it: the device goes on to set marks meanwhile, and none may be lost. */
#include "driver.h"

uint64_t vh_dirty_take(void *log, uint64_t words, uint64_t *into)
{
    uint64_t *word = log, pages = 0;

    for (uint64_t i = 0; i < words; i++) {
        into[i] = __atomic_load_n(&word[i], __ATOMIC_RELAXED);
        if (into[i])
            into[i] = __atomic_exchange_n(&word[i], 0, __ATOMIC_ACQ_REL);
        pages += (uint64_t)__builtin_popcountll(into[i]);
    }
    return pages;
}
