/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Xenstore through /dev/xen/xenbus: one request, one answer, no transactions, no watches. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guest.h"

enum { XS_READ = 2, XS_WRITE = 11, XS_ERROR = 16 };

struct header {
    uint32_t type;
    uint32_t request;
    uint32_t transaction;
    uint32_t bytes;
};

static int bus = -1;
static uint32_t requests;

void store_open(void)
{
    bus = open("/dev/xen/xenbus", O_RDWR | O_CLOEXEC);
    if (bus < 0)
        die("cannot open /dev/xen/xenbus: %s", strerror(errno));
}

static void receive(void *to, size_t n)
{
    for (uint8_t *at = to; n;) {
        ssize_t got = read(bus, at, n);
        if (got <= 0)
            die("xenstore does not answer: %s", got ? strerror(errno) : "end of file");
        at += got;
        n -= (size_t)got;
    }
}

/* Send a request; whether it succeeded, and its answer with a null byte. */
static bool ask(uint32_t type, const char *name, const char *value, char answer[static STORE_MAX + 1])
{
    struct header header = {.type = type, .request = ++requests};
    size_t name_bytes = strlen(name) + 1, value_bytes = value ? strlen(value) : 0;
    uint8_t message[sizeof header + STORE_MAX];

    if (name_bytes + value_bytes > STORE_MAX)
        die("%s is too long for xenstore", name);
    header.bytes = (uint32_t)(name_bytes + value_bytes);
    memcpy(message, &header, sizeof header);
    memcpy(message + sizeof header, name, name_bytes);
    if (value)
        memcpy(message + sizeof header + name_bytes, value, value_bytes);
    if (write(bus, message, sizeof header + header.bytes) != (ssize_t)(sizeof header + header.bytes))
        die("cannot write to xenstore: %s", strerror(errno));
    receive(&header, sizeof header);
    if (header.request != requests || header.bytes > STORE_MAX)
        die("xenstore answers request %u, not %u, with %u bytes", header.request, requests, header.bytes);
    receive(answer, header.bytes);
    answer[header.bytes] = 0;
    return header.type == type;
}

void store_write(const char *name, const char *value)
{
    char answer[STORE_MAX + 1];

    if (!ask(XS_WRITE, name, value, answer))
        die("cannot write %s: %s", name, answer);
}

bool store_read(const char *name, char value[static STORE_MAX + 1])
{
    if (ask(XS_READ, name, NULL, value))
        return true;
    if (strcmp(value, "ENOENT"))
        die("cannot read %s: %s", name, value);
    return false;
}
