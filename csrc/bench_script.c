/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* The front-end's side of the control plane at its quickest: messages that are made beforehand, sent and timed. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "core.h"

enum { HEADER = 12, REPLY = 4, LARGEST = 64 };

static int say(int fd, const struct vh_bench_message *m)
{
    union {
        char room[CMSG_SPACE(VH_BENCH_FDS * sizeof(int32_t))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec bytes = {m->data, m->size};
    struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1};

    if (m->n_fds) {
        size_t n = (m->n_fds < VH_BENCH_FDS ? m->n_fds : VH_BENCH_FDS) * sizeof(int32_t);

        message.msg_control = control.room;
        message.msg_controllen = CMSG_SPACE(n);
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);

        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(n);
        memcpy(CMSG_DATA(c), m->fds, n);
    }
    ssize_t n = sendmsg(fd, &message, MSG_NOSIGNAL);

    if (n < 0)
        return -errno;
    return (size_t)n == m->size ? 0 : -EMSGSIZE;
}

/* Take the answer and check it: which request it is to, how long it is and, where nothing but success is possible,
 * that it says so. */
static int hear(int fd, const struct vh_bench_message *m, uint64_t *value)
{
    uint8_t data[LARGEST];
    uint32_t head[3], asked;
    size_t want = HEADER + m->answer;

    if (want > sizeof data)
        return -EMSGSIZE;
    ssize_t n = recv(fd, data, want, MSG_WAITALL);

    if (n < 0)
        return errno == EAGAIN ? -ETIMEDOUT : -errno;
    if (!n)
        return -ECONNRESET;
    if ((size_t)n != want)
        return -EPROTO;
    memcpy(head, data, sizeof head);
    memcpy(&asked, m->data, sizeof asked);
    if (head[0] != asked || !(head[1] & REPLY) || head[2] != m->answer)
        return -EPROTO;
    memcpy(value, data + HEADER, sizeof *value);
    return m->must_succeed && *value ? -EPERM : 0;
}

/* Send the messages, each after the answer to the one before if it has any. Returns ticks, or -errno with the number
 * of the message in *at: -EPERM refused, -EPROTO a wrong answer, -ETIMEDOUT none in time. *value is the first word
 * of the last answer. */
int64_t vh_bench_play(int fd, const struct vh_bench_message *message, uint32_t n, uint32_t *at, uint64_t *value)
{
    uint64_t start = vh_bench_ticks();

    for (uint32_t i = 0; i < n; i++) {
        int bad = say(fd, &message[i]);

        if (!bad && message[i].answer)
            bad = hear(fd, &message[i], value);
        if (bad) {
            *at = i;
            return bad;
        }
    }
    return (int64_t)(vh_bench_ticks() - start);
}
