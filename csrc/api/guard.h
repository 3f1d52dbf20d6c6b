/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Truncated files: SIGBUS inside a guarded range becomes zero pages and a mark. */

int vh_guard_add(void *addr, size_t len); /* slot > 0, or -errno; installs the handler when first used */
void vh_guard_remove(int slot);           /* before the range is unmapped */
int vh_guard_hit(int slot);               /* 1 once an access in the range has faulted */
uint32_t vh_guard_hits(void);             /* faults in all ranges so far */
