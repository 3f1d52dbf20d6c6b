/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * A libxengnttab for tests without Xen. Every domain's memory is one file; grant reference n is its page n.
 * What the tests set and read is in fake_gnttab, see fakes.py here for the same in ctypes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define LIVE 1024
#define CALLS 256
#define NONE UINT32_MAX

#define GENERAL_ERROR (-1)
#define BAD_DOMAIN (-2)
#define BAD_GNTREF (-3)
#define SOURCE_GREF 1
#define DEST_GREF 2

struct fake_gnttab {
    int32_t memory;     /* file with the guest's pages, -1: no Xen here */
    uint32_t granted;   /* references below this exist */
    uint32_t read_only; /* references below this are granted read-only */
    int32_t domid;      /* the only domain, -1: any */
    int32_t fail_errno; /* the next fail_times maps fail with this */
    uint32_t fail_times;
    uint32_t fail_skip; /* but first so many succeed */
    uint32_t opened;
    uint32_t closed;
    uint32_t maps; /* successful calls */
    uint32_t tries;
    uint32_t unmaps;
    uint32_t pages; /* mapped now */
    int32_t prot;   /* of the last map */
    uint32_t count; /* of the last map */
    uint32_t bad;   /* unmaps of what was not mapped so */
    uint32_t calls; /* the first CALLS successful maps and unmaps, in their order */
    int64_t watch;  /* place in the file of 16 bits that each of them notes */
    struct {
        uint32_t ref; /* the first one */
        uint32_t count;
        int32_t prot; /* -1: unmapped */
        uint32_t watched;
    } call[CALLS];
    uint32_t notified;      /* unmaps that notified the guest */
    uint32_t notified_port; /* the port of the last one, -1: none */
    uint32_t copies;        /* calls of grant_copy that the kernel took */
    uint32_t segments;      /* that were copied */
    uint64_t bytes;         /* in them */
    int32_t copy_errno;     /* the next copy_times copies fail with this, as a whole and without a copy */
    uint32_t copy_times;
    int32_t bad_status; /* the next bad_segments segments fail with this GNTST */
    uint32_t bad_segments;
    uint32_t bad_skip; /* but first so many succeed */
};

struct fake_gnttab fake_gnttab = {.memory = -1, .domid = -1};
static struct {
    void *start;
    uint32_t ref;
    uint32_t count;
    uint32_t clear; /* when unmapped, this byte of the page becomes 0 and this port is notified; -1: none */
    uint32_t port;
} live[LIVE];

static void note(uint32_t ref, uint32_t count, int prot)
{
    uint16_t watched = 0;

    if (fake_gnttab.calls == CALLS || pread(fake_gnttab.memory, &watched, 2, fake_gnttab.watch) < 0)
        return;
    fake_gnttab.call[fake_gnttab.calls].ref = ref;
    fake_gnttab.call[fake_gnttab.calls].count = count;
    fake_gnttab.call[fake_gnttab.calls].prot = prot;
    fake_gnttab.call[fake_gnttab.calls++].watched = watched;
}

void *xengnttab_open(void *logger, unsigned int flags)
{
    (void)logger, (void)flags;
    if (fake_gnttab.memory < 0) {
        errno = ENOENT;
        return NULL;
    }
    fake_gnttab.opened++;
    return &fake_gnttab;
}

int xengnttab_close(void *handle)
{
    (void)handle;
    fake_gnttab.closed++;
    return 0;
}

int xengnttab_set_max_grants(void *handle, uint32_t count)
{
    (void)handle, (void)count;
    return 0;
}

void *xengnttab_map_grant_refs(void *handle, uint32_t count, uint32_t *domids, uint32_t *refs, int prot)
{
    struct fake_gnttab *f = handle;
    f->tries++;
    if (f->fail_skip) {
        f->fail_skip--;
    } else if (f->fail_times) {
        f->fail_times--;
        errno = f->fail_errno;
        return NULL;
    }
    errno = EINVAL;
    if (!count)
        return NULL;
    for (uint32_t i = 0; i < count; i++)
        if (refs[i] >= f->granted || ((prot & PROT_WRITE) && refs[i] < f->read_only) ||
            (f->domid >= 0 && domids[i] != (uint32_t)f->domid))
            return NULL;
    int slot = 0;
    while (slot < LIVE && live[slot].start)
        slot++;
    if (slot == LIVE)
        return NULL;
    char *start = mmap(NULL, (size_t)count * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED)
        return NULL;
    for (uint32_t i = 0; i < count; i++)
        if (mmap(start + (size_t)i * PAGE, PAGE, prot, MAP_SHARED | MAP_FIXED, f->memory, (off_t)refs[i] * PAGE) ==
            MAP_FAILED)
            return NULL;
    live[slot].start = start;
    live[slot].ref = refs[0];
    live[slot].count = count;
    live[slot].clear = live[slot].port = NONE;
    f->maps++;
    f->pages += count;
    f->prot = prot;
    f->count = count;
    note(refs[0], count, prot);
    return start;
}

void *xengnttab_map_domain_grant_refs(void *handle, uint32_t count, uint32_t domid, uint32_t *refs, int prot)
{
    uint32_t domids[count ? count : 1];
    for (uint32_t i = 0; i < count; i++)
        domids[i] = domid;
    return xengnttab_map_grant_refs(handle, count, domids, refs, prot);
}

void *xengnttab_map_grant_ref(void *handle, uint32_t domid, uint32_t ref, int prot)
{
    return xengnttab_map_grant_refs(handle, 1, &domid, &ref, prot);
}

int xengnttab_unmap(void *handle, void *start, uint32_t count);

void *xengnttab_map_grant_ref_notify(void *handle, uint32_t domid, uint32_t ref, int prot, uint32_t clear,
                                     uint32_t port)
{
    void *start = xengnttab_map_grant_refs(handle, 1, &domid, &ref, prot);
    if (!start)
        return NULL;
    if (clear < PAGE && !(prot & PROT_WRITE)) { /* as the kernel has it */
        xengnttab_unmap(handle, start, 1);
        errno = EINVAL;
        return NULL;
    }
    for (int i = 0; i < LIVE; i++)
        if (live[i].start == start) {
            live[i].clear = clear;
            live[i].port = port;
        }
    return start;
}

struct segment {
    union place {
        char *address;
        struct {
            uint32_t ref;
            uint16_t offset;
            uint16_t domid;
        } foreign;
    } source, dest;
    uint16_t len;
    uint16_t flags;
    int16_t status;
};

static int16_t copy_one(struct fake_gnttab *f, const struct segment *s)
{
    int to = s->flags & DEST_GREF;
    const union place *grant = to ? &s->dest : &s->source;
    off_t at = (off_t)grant->foreign.ref * PAGE + grant->foreign.offset;

    if (f->bad_skip) {
        f->bad_skip--;
    } else if (f->bad_segments) {
        f->bad_segments--;
        return (int16_t)f->bad_status;
    }
    if (f->domid >= 0 && grant->foreign.domid != f->domid)
        return BAD_DOMAIN;
    if (grant->foreign.ref >= f->granted)
        return BAD_GNTREF;
    if (to && grant->foreign.ref < f->read_only)
        return GENERAL_ERROR;
    ssize_t n = to ? pwrite(f->memory, s->source.address, s->len, at) : pread(f->memory, s->dest.address, s->len, at);
    if (n != s->len)
        return GENERAL_ERROR;
    f->segments++;
    f->bytes += s->len;
    return 0;
}

/* Of each segment one side is a grant here; the real one copies from grant to grant too. */
int xengnttab_grant_copy(void *handle, uint32_t count, struct segment *segments)
{
    struct fake_gnttab *f = handle;

    if (f->copy_times) {
        f->copy_times--;
        errno = f->copy_errno;
        return -1;
    }
    errno = EINVAL;
    for (uint32_t i = 0; i < count; i++) {
        const struct segment *s = &segments[i];
        uint32_t offset = s->flags & DEST_GREF ? s->dest.foreign.offset : s->source.foreign.offset;
        if ((s->flags != SOURCE_GREF && s->flags != DEST_GREF) || offset + s->len > PAGE)
            return -1;
    }
    for (uint32_t i = 0; i < count; i++)
        segments[i].status = copy_one(f, &segments[i]);
    f->copies++;
    return 0;
}

int xengnttab_unmap(void *handle, void *start, uint32_t count)
{
    struct fake_gnttab *f = handle;
    for (int i = 0; i < LIVE; i++)
        if (live[i].start == start && live[i].count == count) {
            live[i].start = NULL;
            f->unmaps++;
            f->pages -= count;
            if (live[i].clear < PAGE)
                ((char *)start)[live[i].clear] = 0;
            if (live[i].clear < PAGE || live[i].port != NONE) {
                f->notified++;
                f->notified_port = live[i].port;
            }
            note(live[i].ref, count, -1);
            return munmap(start, (size_t)count * PAGE);
        }
    f->bad++;
    errno = EINVAL;
    return -1;
}
