/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Copies between a flat buffer and the pieces of chains. */

int64_t vh_chain_read(const struct vh_batch *b, const struct vh_chain *c, uint64_t skip, void *to, uint64_t len);
int64_t vh_chain_write(const struct vh_batch *b, struct vh_chain *c, uint64_t skip, const char *from, uint64_t len);
int vh_chain_done(struct vh_chain *c);
uint64_t vh_batch_scatter(struct vh_batch *b, const void *from, uint64_t len, const uint64_t *sizes);
void vh_batch_gather(const struct vh_batch *b, void *to, uint64_t width);
void vh_batch_sizes(const struct vh_batch *b, uint64_t *readable, uint64_t *writable);
uint64_t vh_batch_readable(const struct vh_batch *b);
uint64_t vh_batch_writable(const struct vh_batch *b);
