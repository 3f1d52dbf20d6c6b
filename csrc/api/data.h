/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Copies between a flat buffer and the pieces of chains. */

uint64_t vh_gather(const struct vh_iov *iov, uint32_t n, uint64_t skip, void *to, uint64_t len);
uint64_t vh_scatter(const struct vh_iov *iov, uint32_t n, uint64_t skip, const void *from, uint64_t len);
uint64_t vh_batch_scatter(struct vh_batch *b, const void *from, uint64_t len, const uint64_t *sizes);
void vh_batch_gather(const struct vh_batch *b, void *to, uint64_t width);
void vh_batch_sizes(const struct vh_batch *b, uint64_t *readable, uint64_t *writable);
uint64_t vh_batch_readable(const struct vh_batch *b);
uint64_t vh_batch_writable(const struct vh_batch *b);
