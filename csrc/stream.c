/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* The control plane's socket. What the bytes mean is not known here. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core.h"

/* Keep the descriptors that came. When the kernel could not deliver all of them, which one is missing cannot be
 * known, so those that did arrive are closed and the message counts as one without. */
static void take_fds(struct vh_stream *s, struct msghdr *message)
{
    s->n_fds = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int32_t);

        for (size_t i = 0; i < n; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if ((message->msg_flags & MSG_CTRUNC) || s->n_fds == VH_STREAM_FDS)
                close(fd);
            else
                s->fds[s->n_fds++] = fd;
        }
    }
}

/* Whether the bytes are a request with a standing answer, which is sent then. */
static bool answered(const struct vh_stream *s, size_t n)
{
    if (n != sizeof s->standing->request || s->n_fds)
        return false;
    for (uint32_t i = 0; i < s->n_standing; i++) {
        const struct vh_standing *a = &s->standing[i];

        /* So few bytes go as one or not at all; if not, who waits for room is the caller. */
        if (!memcmp(s->data, a->request, n))
            return send(s->fd, a->answer, a->length, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)a->length;
    }
    return false;
}

/* Wait until a descriptor is readable. Returns 0, VH_STREAM_STOPPED, VH_STREAM_OTHER, or -errno; -EINTR is for the caller to look at
 * its signals and call again. */
static int64_t wait_for(const struct vh_stream *s, int fd, int other)
{
    struct pollfd wait[3] = {{.fd = fd, .events = POLLIN}, {.fd = s->stop, .events = POLLIN},
                             {.fd = other, .events = POLLIN}};

    if (poll(wait, other >= 0 ? 3 : s->stop >= 0 ? 2 : 1, -1) < 0)
        return -errno;
    if (wait[1].revents)
        return VH_STREAM_STOPPED;
    return wait[0].revents || !wait[2].revents ? 0 : VH_STREAM_OTHER;
}

/* Wait for a connection, which becomes s->fd. Returns 0 or what wait_for() returns. */
int64_t vh_stream_accept(struct vh_stream *s, int listener)
{
    for (;;) {
        int64_t waited = wait_for(s, listener, -1);

        if (waited)
            return waited;
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd >= 0) {
            s->fd = fd;
            return 0;
        }
        /* Who has gone away again in the meantime is no reason to complain. */
        if (errno != EAGAIN && errno != ECONNABORTED)
            return -errno;
    }
}

/* Wait for bytes and take them, with s->n_fds descriptors. Returns how many bytes, 0: the peer has closed, or what
 * wait_for() returns. */
int64_t vh_stream_receive(struct vh_stream *s)
{
    union {
        char room[CMSG_SPACE(VH_STREAM_FDS * sizeof(int32_t))];
        struct cmsghdr align;
    } control;

    for (;;) {
        int64_t waited = wait_for(s, s->fd, s->other);

        if (waited)
            return waited;
        struct iovec bytes = {s->data, s->size};
        struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1, .msg_control = control.room,
                                 .msg_controllen = sizeof control.room};
        ssize_t n = recvmsg(s->fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

        if (n >= 0) {
            take_fds(s, &message);
            if (!answered(s, (size_t)n))
                return n;
        } else if (errno != EAGAIN)
            return -errno;
    }
}

/* Send what there is room for, with the descriptors on its first byte. Returns how many bytes, or -errno. */
int64_t vh_stream_send(const struct vh_stream *s, const uint8_t *data, size_t n, const int32_t *fds, uint32_t n_fds)
{
    union {
        char room[CMSG_SPACE(VH_STREAM_FDS * sizeof(int32_t))];
        struct cmsghdr align;
    } control;
    struct iovec bytes = {(void *)(uintptr_t)data, n};
    struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1};

    if (n_fds > VH_STREAM_FDS)
        return -EINVAL;
    if (n_fds) {
        size_t length = n_fds * sizeof *fds;

        message.msg_control = control.room;
        message.msg_controllen = CMSG_SPACE(length);
        control.align = (struct cmsghdr){
            .cmsg_len = CMSG_LEN(length), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(&control.align), fds, length);
    }
    ssize_t sent = sendmsg(s->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);

    return sent < 0 ? -errno : sent;
}
