/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* One event channel to domain 0, through /dev/xen/evtchn: kicks go out, calls come in. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "guest.h"

typedef uint16_t domid_t; /* the header wants it of whoever includes it */
#include <xen/evtchn.h>

static int device = -1;
static uint32_t port;

uint32_t events_open(void)
{
    struct ioctl_evtchn_bind_unbound_port request = {.remote_domain = 0};

    device = open("/dev/xen/evtchn", O_RDWR | O_CLOEXEC);
    if (device < 0)
        die("cannot open /dev/xen/evtchn: %s", strerror(errno));
    int bound = ioctl(device, IOCTL_EVTCHN_BIND_UNBOUND_PORT, &request);
    if (bound < 0)
        die("cannot make an event channel: %s", strerror(errno));
    port = (uint32_t)bound;
    return port;
}

void events_notify(void)
{
    struct ioctl_evtchn_notify request = {.port = port};

    if (ioctl(device, IOCTL_EVTCHN_NOTIFY, &request))
        die("cannot notify domain 0: %s", strerror(errno));
}

void events_wait(unsigned int ms)
{
    struct pollfd poller = {.fd = device, .events = POLLIN};
    uint32_t fired;

    if (poll(&poller, 1, (int)ms) <= 0)
        return;
    if (read(device, &fired, sizeof fired) != sizeof fired || fired != port)
        die("not our event channel fired");
    if (write(device, &fired, sizeof fired) != sizeof fired) /* so that it can fire again */
        die("cannot unmask the event channel: %s", strerror(errno));
}

void events_close(void)
{
    close(device);
    device = -1;
}
