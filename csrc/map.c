/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * Files as guest memory: page sizes, huge pages, places in the address space. As few system calls as there can
 * be, since a front-end may plug memory in and out as fast as it likes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core.h"

/* Where the kernel can map a transparent huge page: address and file offset equal modulo this. */
#define HUGE ((uint64_t)2 << 20)
/* Largest huge page of any architecture; what claims to be bigger is not one. */
#define HUGEST ((uint64_t)16 << 30)
/* One past the last byte a file can have. */
#define FILE_END ((uint64_t)1 << 63)

/* Where the last aligned mapping begins, 0: there is none. The next one goes below it, if that is free. */
static atomic_uintptr_t lowest;
static atomic_uint aligned;

static bool fail(struct vh_map_error *error, enum vh_map_step step, int code, uint64_t detail)
{
    *error = (struct vh_map_error){(int32_t)step, code, detail};
    return false;
}

/* The unit in which the file can be mapped. Files on hugetlbfs report their huge page as block size, and only they
 * insist; rounding to the block size of any other file only maps a little more. */
static bool granule(int fd, uint64_t end, uint64_t page, uint64_t *unit, struct vh_map_error *error)
{
    struct stat status;

    *unit = page;
    if (fstat(fd, &status))
        return fail(error, VH_MAP_STAT, errno, 0);
    if (!S_ISREG(status.st_mode))
        return true;
    if (end > (uint64_t)status.st_size)
        return fail(error, VH_MAP_SHORT, EINVAL, (uint64_t)status.st_size);
    uint64_t block = (uint64_t)status.st_blksize;
    if (block > page && block <= HUGEST && !(block & (block - 1)))
        *unit = block;
    return true;
}

/* Read-only where the descriptor allows no more. */
static void *place(void *at, size_t length, int flags, int fd, uint64_t start, int32_t *writable)
{
    flags |= MAP_SHARED | MAP_NORESERVE;
    void *found = mmap(at, length, PROT_READ | PROT_WRITE, flags, fd, (off_t)start);

    *writable = 1;
    if (found == MAP_FAILED && errno == EACCES) {
        *writable = 0;
        found = mmap(at, length, PROT_READ, flags, fd, (off_t)start);
    }
    return found;
}

/* Address space for a mapping whose address equals its file offset modulo align. */
static void *reserve(size_t length, uint64_t offset, uint64_t align, uint64_t page)
{
    size_t slack = (size_t)(align - page);

    if (length > SIZE_MAX - slack) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    char *start = mmap(NULL, length + slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED)
        return MAP_FAILED;
    size_t before = (size_t)((offset - (uintptr_t)start) & (align - 1));
    if (before)
        munmap(start, before);
    if (before < slack)
        munmap(start + before + length, slack - before);
    return start + before;
}

/* A mapping at an address that equals the offset modulo align. */
static void *place_aligned(size_t length, int fd, uint64_t start, uint64_t align, uint64_t page, int32_t *writable,
                           struct vh_map_error *error)
{
    uintptr_t below = atomic_load_explicit(&lowest, memory_order_relaxed);

    if (below > length + align) {
        uintptr_t wanted = below - length;
        wanted -= (wanted - start) & (align - 1);
        void *found = place((void *)wanted, length, MAP_FIXED_NOREPLACE, fd, start, writable);
        if (found == (void *)wanted) {
            atomic_store_explicit(&lowest, wanted, memory_order_relaxed);
            return found;
        }
        if (found != MAP_FAILED) /* a kernel before 4.17 */
            munmap(found, length);
    }
    void *base = reserve(length, start, align, page);
    if (base == MAP_FAILED) {
        fail(error, VH_MAP_RESERVE, errno, length);
        return MAP_FAILED;
    }
    if (place(base, length, MAP_FIXED, fd, start, writable) == MAP_FAILED) {
        fail(error, VH_MAP_PLACE, errno, length);
        munmap(base, length);
        return MAP_FAILED;
    }
    atomic_store_explicit(&lowest, (uintptr_t)base, memory_order_relaxed);
    return base;
}

static void unplace(void *base, size_t length, bool was_aligned)
{
    munmap(base, length);
    /* With the last one gone, start anew where the kernel says, rather than go ever deeper. */
    if (was_aligned && atomic_fetch_sub(&aligned, 1) == 1)
        atomic_store(&lowest, 0);
}

/* Map a part of a file, guarded against its becoming shorter; NULL: *error says why. The descriptor stays. */
struct vh_mapping *vh_map(int fd, uint64_t offset, uint64_t size, struct vh_map_error *error)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), unit, end;

    if (__builtin_add_overflow(offset, size, &end))
        end = UINT64_MAX;
    if (!granule(fd, end, page, &unit, error))
        return NULL;
    /* The whole granules that hold the part. */
    uint64_t skip = offset & (unit - 1), start = offset - skip;
    if (end > FILE_END || start + ((skip + size + unit - 1) & ~(unit - 1)) > FILE_END) {
        fail(error, VH_MAP_BEYOND, EOVERFLOW, 0);
        return NULL;
    }
    size_t length = (size_t)((skip + size + unit - 1) & ~(unit - 1));
    uint64_t align = size >= HUGE && unit < HUGE ? HUGE : unit;
    struct vh_mapping *m = malloc(sizeof *m);
    if (!m) {
        fail(error, VH_MAP_RESERVE, ENOMEM, sizeof *m);
        return NULL;
    }
    m->length = length;
    if (align == page) {
        m->base = place(NULL, length, 0, fd, start, &m->writable);
        if (m->base == MAP_FAILED)
            fail(error, VH_MAP_PLACE, errno, length);
    } else {
        m->base = place_aligned(length, fd, start, align, page, &m->writable, error);
    }
    if (m->base == MAP_FAILED) {
        free(m);
        return NULL;
    }
    m->aligned = align != page;
    if (m->aligned)
        atomic_fetch_add(&aligned, 1);
    /* Only spares core dumps the guest's memory: where the kernel cannot, nothing else changes. */
    madvise(m->base, length, MADV_DONTDUMP);
    m->guard = vh_guard_add(m->base, length);
    if (m->guard < 0) {
        fail(error, VH_MAP_GUARD, -m->guard, 0);
        unplace(m->base, length, m->aligned);
        free(m);
        return NULL;
    }
    m->host = (uintptr_t)m->base + skip;
    return m;
}

void vh_unmap(struct vh_mapping *m)
{
    vh_guard_remove(m->guard);
    unplace(m->base, m->length, m->aligned);
    free(m);
}
