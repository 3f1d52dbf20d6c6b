/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * Memory that a back-end in domain 0 can use. Either pages granted by /dev/xen/gntalloc, whose addresses are
 * those of Linux, drivers/xen/grant-dma-ops.c: bit 63 and the reference in the place of the frame number. Or
 * locked anonymous pages by their guest-physical addresses; nothing moves them in a guest that does nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xen/gntalloc.h>

#include "guest.h"

#define GRANT_BIT (UINT64_C(1) << 63)
#define FRAME_MASK ((UINT64_C(1) << 55) - 1) /* of an entry in /proc/self/pagemap */
#define PRESENT (UINT64_C(1) << 63)

enum { SYSLOG_READ_ALL = 3, SYSLOG_CLEAR = 5, LOG_SIZE = 1 << 18 };

static int gntalloc = -1, pagemap = -1;

static const char *const watch = "func gnttab_add_deferred +p"; /* it tells of what cannot be taken back */

void pages_open(void)
{
    int debug = open("/proc/dynamic_debug/control", O_WRONLY | O_CLOEXEC);

    if (debug < 0 || write(debug, watch, strlen(watch)) < 0)
        die("cannot write /proc/dynamic_debug/control: %s", strerror(errno));
    close(debug);
    gntalloc = open("/dev/xen/gntalloc", O_RDWR | O_CLOEXEC);
    pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (gntalloc < 0 || pagemap < 0)
        die("cannot open %s: %s", gntalloc < 0 ? "/dev/xen/gntalloc" : "/proc/self/pagemap", strerror(errno));
}

static void grant(struct pages *pages, bool device_writes)
{
    union {
        struct ioctl_gntalloc_alloc_gref alloc;
        uint8_t room[sizeof(struct ioctl_gntalloc_alloc_gref) + MAX_PAGES * sizeof(uint32_t)];
    } request;
    uint32_t refs[MAX_PAGES];

    memset(&request, 0, sizeof request);
    request.alloc.domid = 0;
    request.alloc.flags = device_writes ? GNTALLOC_FLAG_WRITABLE : 0;
    request.alloc.count = pages->n;
    if (ioctl(gntalloc, IOCTL_GNTALLOC_ALLOC_GREF, &request.alloc))
        die("cannot grant %u pages: %s", pages->n, strerror(errno));
    pages->index = request.alloc.index;
    memcpy(refs, request.room + offsetof(struct ioctl_gntalloc_alloc_gref, gref_ids), sizeof refs);
    for (uint32_t i = 0; i < pages->n; i++)
        pages->address[i] = GRANT_BIT | (uint64_t)refs[i] * PAGE;
    pages->at = mmap(NULL, (size_t)pages->n * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, gntalloc,
                     (off_t)pages->index);
    if (pages->at == MAP_FAILED)
        die("cannot map %u granted pages: %s", pages->n, strerror(errno));
}

static void lock(struct pages *pages)
{
    uint64_t entry[MAX_PAGES];
    ssize_t size = (ssize_t)(pages->n * sizeof entry[0]);

    pages->at = mmap(NULL, (size_t)pages->n * PAGE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE, -1, 0);
    if (pages->at == MAP_FAILED)
        die("cannot lock %u pages: %s", pages->n, strerror(errno));
    memset(pages->at, 0, (size_t)pages->n * PAGE);
    if (pread(pagemap, entry, (size_t)size, (off_t)((uintptr_t)pages->at / PAGE * sizeof entry[0])) != size)
        die("cannot read /proc/self/pagemap: %s", strerror(errno));
    for (uint32_t i = 0; i < pages->n; i++) {
        if (!(entry[i] & PRESENT) || !(entry[i] & FRAME_MASK))
            die("page %u has no frame: %llx", i, (unsigned long long)entry[i]);
        pages->address[i] = (entry[i] & FRAME_MASK) * PAGE;
    }
}

void pages_take(struct pages *pages, uint32_t n, const struct options *options, bool device_writes)
{
    if (n > MAX_PAGES)
        die("%u pages in a group", n);
    pages->n = n;
    pages->granted = !options->foreign;
    if (pages->granted)
        grant(pages, device_writes || !options->read_only);
    else
        lock(pages);
}

static unsigned int count(const char *text, const char *word)
{
    unsigned int n = 0;

    for (; (text = strstr(text, word)); text++)
        n++;
    return n;
}

unsigned int pages_release(struct pages *pages, size_t groups)
{
    static char log[LOG_SIZE + 1];

    /* The kernel keeps a page whose grant is in use, and says so in its log only. */
    if (klogctl(SYSLOG_CLEAR, NULL, 0))
        die("cannot clear the kernel's log: %s", strerror(errno));
    for (size_t i = 0; i < groups; i++) {
        if (munmap(pages[i].at, (size_t)pages[i].n * PAGE))
            die("cannot unmap group %zu: %s", i, strerror(errno));
        struct ioctl_gntalloc_dealloc_gref request = {.index = pages[i].index, .count = pages[i].n};
        if (pages[i].granted && ioctl(gntalloc, IOCTL_GNTALLOC_DEALLOC_GREF, &request))
            die("cannot give back group %zu: %s", i, strerror(errno));
    }
    int n = klogctl(SYSLOG_READ_ALL, log, LOG_SIZE);
    if (n < 0)
        die("cannot read the kernel's log: %s", strerror(errno));
    log[n] = 0;
    return count(log, "deferring g.e. ") + count(log, "leaking g.e. ");
}

static int compare(const void *one, const void *other)
{
    uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;

    return (a > b) - (a < b);
}

size_t pages_describe(const struct pages *pages, const char *group, char *text, size_t end, size_t size)
{
    uint64_t sorted[MAX_PAGES];

    memcpy(sorted, pages->address, pages->n * sizeof sorted[0]);
    qsort(sorted, pages->n, sizeof sorted[0], compare);
    for (uint32_t first = 0, i = 1; i <= pages->n; i++) {
        if (i < pages->n && sorted[i] == sorted[i - 1] + PAGE)
            continue;
        int n = snprintf(text + end, size - end, "%s %llx %x\n", group, (unsigned long long)sorted[first],
                         (i - first) * PAGE);
        if (n < 0 || (size_t)n >= size - end)
            die("the memory lies in too many places to list");
        end += (size_t)n;
        first = i;
    }
    return end;
}
