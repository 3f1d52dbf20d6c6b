/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * Descriptors for notifications: eventfds, or pipes and sockets in their place. Whether they block is a property that
 * the peer shares with us, and may change at any time.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "core.h"

/* Make a descriptor that a peer gave for notifications fit for them: files and devices cannot be waited for, and it must
 * not block where they are taken from it. Where the peer takes them, it may want to be blocked, and an eventfd is never
 * full but by intent. An eventfd has no file type at all. Returns 0, the mode of one that is refused, or -errno. */
int64_t vh_notifier(int fd, int taken)
{
    struct stat status;

    if (fstat(fd, &status))
        return -errno;
    if ((status.st_mode & S_IFMT) && !S_ISFIFO(status.st_mode) && !S_ISSOCK(status.st_mode))
        return status.st_mode;
    if (!taken && !(status.st_mode & S_IFMT))
        return 0;
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || (!(flags & O_NONBLOCK) && fcntl(fd, F_SETFL, flags | O_NONBLOCK)))
        return -errno;
    return 0;
}

/* Whether it is an eventfd: who waits for one is let go by whoever does the opposite. */
int vh_is_counter(int fd)
{
    struct stat status;

    return !fstat(fd, &status) && !(status.st_mode & S_IFMT);
}

static bool ready(int fd, short event)
{
    struct pollfd wait = {.fd = fd, .events = event};

    return poll(&wait, 1, 0) == 1 && wait.revents & event;
}

/* Notify the peer. Returns 0 or -errno; -EAGAIN: a full counter says it already. */
int vh_notify(int fd)
{
    if (!ready(fd, POLLOUT))
        return -EAGAIN;
    return write(fd, &(uint64_t){1}, sizeof(uint64_t)) < 0 ? -errno : 0;
}

/* Take the pending notification, with `checked` whatever the peer has made of the descriptor. Returns 0: there was
 * none, 1, or -errno, -EPIPE: there will never be one again. */
int vh_take(int fd, int checked)
{
    uint64_t count;
    struct iovec to = {&count, sizeof count};
    ssize_t got = checked ? preadv2(fd, &to, 1, -1, RWF_NOWAIT) : read(fd, &count, sizeof count);

    /* Sockets and old kernels do not know RWF_NOWAIT. */
    if (got < 0 && (errno == EOPNOTSUPP || errno == ESPIPE))
        got = ready(fd, POLLIN | POLLHUP) ? read(fd, &count, sizeof count) : (errno = EAGAIN, -1);
    if (got > 0)
        return 1;
    if (!got)
        return -EPIPE;
    return errno == EAGAIN || errno == EINTR ? 0 : -errno;
}
