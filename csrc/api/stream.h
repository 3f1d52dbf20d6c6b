/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* The control plane's socket: connections, bytes and descriptors, waited for and taken in one call. */

enum vh_stream_limit {
    VH_STREAM_FDS = 253, /* the most descriptors Linux puts into one message (SCM_MAX_FD) */
};

/* A request without payload and the answer that it gets whenever it comes. */
struct vh_standing {
    uint8_t request[12];
    uint32_t length; /* of the answer */
    uint8_t answer[32];
};

struct vh_stream {
    int32_t fd;
    int32_t stop;  /* ends the wait once it is readable, -1: nothing does */
    int32_t other; /* likewise, while nothing is received; -1: none */
    uint32_t pad;
    uint32_t size; /* capacity of data */
    uint32_t n_fds;
    int32_t fds[253];
    uint32_t n_standing;
    uint8_t *data;
    const struct vh_standing *standing;
};

enum vh_stream_result {
    VH_STREAM_STOPPED = -0x10000, /* smaller than any -errno */
    VH_STREAM_OTHER = -0x10001,   /* `other` is readable, and nothing has come */
};

int64_t vh_stream_accept(struct vh_stream *s, int listener);
int64_t vh_stream_receive(struct vh_stream *s);
int64_t vh_stream_send(const struct vh_stream *s, const uint8_t *data, size_t n, const int32_t *fds, uint32_t n_fds);
