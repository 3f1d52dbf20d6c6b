/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * A libxenforeignmemory for tests without Xen: frame n of every domain is page n of one file, which may start
 * at a base. As the real one, it succeeds when single pages fail and reports them in err[]; those pages raise SIGBUS when touched.
 * What the tests set and read is in fake_foreign, see fakes.py here for the same in ctypes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define PAGE 4096

struct fake_foreign {
    int32_t memory;     /* file with the guest's pages, -1: no Xen here */
    int32_t domid;      /* the only domain, -1: any */
    int32_t fail_errno; /* the next fail_times maps fail with this, as a whole */
    uint32_t fail_times;
    int64_t base;       /* guest-physical address of the file's first byte */
    uint64_t bad_frame; /* these frames fail in the next bad_times maps, with bad_errno */
    uint64_t bad_count;
    int32_t bad_errno;
    uint32_t bad_times;
    uint32_t opened;
    uint32_t closed;
    uint32_t maps;
    uint32_t unmaps;
    uint64_t pages; /* mapped now */
    int32_t prot;   /* of the last map */
    int32_t flags;
    int32_t restricted; /* the handle's only domain, when only_restricted */
    uint32_t only_restricted;
    uint32_t resource_frames; /* of every resource of the domain: the first pages of the file */
    uint32_t resources;       /* mapped now */
};

struct fake_foreign fake_foreign = {.memory = -1, .domid = -1};

void *xenforeignmemory_open(void *logger, unsigned int flags)
{
    (void)logger, (void)flags;
    if (fake_foreign.memory < 0) {
        errno = ENOENT;
        return NULL;
    }
    fake_foreign.opened++;
    return &fake_foreign;
}

int xenforeignmemory_close(void *handle)
{
    (void)handle;
    fake_foreign.closed++;
    return 0;
}

static int reachable(const struct fake_foreign *f, uint32_t dom)
{
    if (f->only_restricted && dom != (uint32_t)f->restricted) {
        errno = EPERM;
        return 0;
    }
    if (f->domid >= 0 && dom != (uint32_t)f->domid) {
        errno = ESRCH;
        return 0;
    }
    return 1;
}

void *xenforeignmemory_map2(void *handle, uint32_t dom, void *addr, int prot, int flags, size_t pages,
                            const uint64_t arr[], int err[])
{
    struct fake_foreign *f = handle;
    if (f->fail_times) {
        f->fail_times--;
        errno = f->fail_errno;
        return NULL;
    }
    if (!reachable(f, dom))
        return NULL;
    char *start = mmap(addr, pages * PAGE, PROT_NONE, flags | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED)
        return NULL;
    struct stat file = {0};
    fstat(f->memory, &file);
    size_t run; /* frames that follow each other, and can be mapped as one */
    for (size_t i = 0; i < pages; i += run) {
        off_t offset = (off_t)(arr[i] * PAGE) - f->base;
        for (run = 1; i + run < pages && arr[i + run] == arr[i] + run && !f->bad_times; run++)
            ;
        int code = 0;
        if (f->bad_times && arr[i] >= f->bad_frame && arr[i] < f->bad_frame + f->bad_count)
            code = f->bad_errno;
        else if (offset < 0 || offset + (off_t)(run * PAGE) > file.st_size)
            code = EINVAL;
        else if (mmap(start + i * PAGE, run * PAGE, prot, MAP_SHARED | MAP_FIXED, f->memory, offset) == MAP_FAILED)
            code = errno;
        for (size_t k = 0; k < run; k++)
            err[i + k] = -code;
    }
    if (f->bad_times)
        f->bad_times--;
    f->maps++;
    f->pages += pages;
    f->prot = prot;
    f->flags = flags;
    return start;
}

int xenforeignmemory_unmap(void *handle, void *addr, size_t pages)
{
    struct fake_foreign *f = handle;
    f->unmaps++;
    f->pages -= pages;
    return munmap(addr, pages * PAGE);
}

int xenforeignmemory_restrict(void *handle, uint16_t dom)
{
    struct fake_foreign *f = handle;
    if (f->only_restricted && dom != f->restricted) {
        errno = EINVAL;
        return -1;
    }
    f->restricted = dom;
    f->only_restricted = 1;
    return 0;
}

struct resource {
    void *start;
    size_t size;
};

void *xenforeignmemory_map_resource(void *handle, uint16_t dom, unsigned int type, unsigned int id, unsigned long frame,
                                    unsigned long frames, void **addr, int prot, int flags)
{
    struct fake_foreign *f = handle;
    (void)type, (void)id;
    if (!reachable(f, dom))
        return NULL;
    if (!frames || frame + frames > f->resource_frames) {
        errno = EINVAL;
        return NULL;
    }
    struct resource *made = malloc(sizeof *made);
    if (!made)
        return NULL;
    made->size = frames * PAGE;
    made->start = mmap(*addr, made->size, prot, flags | MAP_SHARED, f->memory, (off_t)(frame * PAGE));
    if (made->start == MAP_FAILED) {
        free(made);
        return NULL;
    }
    *addr = made->start;
    f->resources++;
    return made;
}

int xenforeignmemory_unmap_resource(void *handle, void *resource)
{
    struct fake_foreign *f = handle;
    struct resource *made = resource;
    int result = munmap(made->start, made->size);
    free(made);
    f->resources--;
    return result;
}

int xenforeignmemory_resource_size(void *handle, uint16_t dom, unsigned int type, unsigned int id, size_t *size)
{
    struct fake_foreign *f = handle;
    (void)type, (void)id;
    if (!reachable(f, dom))
        return -1;
    *size = (size_t)f->resource_frames * PAGE;
    return 0;
}
