/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * The requests of a run. A disk is written with pages that differ from each other and from run to run, by
 * several requests of 4 to 32 KiB in flight, then read back and compared. Page k of the data is one page of
 * noise, turned by k * 64 bytes, with k as the first 8 bytes. A generator gets one request at a time.
 */
#include <linux/virtio_blk.h>
#include <stdio.h>
#include <string.h>

#include "guest.h"

#define REQUEST_PAGES 8u /* of a disk request, at most */
#define SECTOR 512u
#define SECONDS 120u /* without an answer */

/* Pages of the group that the device reads: headers, indirect tables, data to write. */
enum { HEADERS, TABLES, OUT_DATA };
/* Pages of the group that it writes: status bytes, data read. */
enum { STATUS, IN_DATA };
/* Bytes from one indirect table to the next. */
enum { TABLE = 256 };

_Static_assert(OUT_DATA + CHAINS * REQUEST_PAGES <= MAX_PAGES, "a group holds the data of all chains");
_Static_assert(CHAINS * TABLE <= PAGE && CHAIN_MAX * 16 <= TABLE, "the tables fit into one page");
_Static_assert(2 + REQUEST_PAGES <= CHAIN_MAX, "a request with a part for each page is one chain");

enum { RING, OUT, IN, GROUPS };
static struct pages group[GROUPS];
static const struct options *run;
static uint8_t noise[PAGE];
static struct {
    bool busy;
    uint32_t first, n; /* pages of the data */
} request[CHAINS];

static void page_of_data(uint8_t to[static PAGE], uint64_t k)
{
    size_t turn = (size_t)(k * 64 % PAGE);

    memcpy(to, noise + turn, PAGE - turn);
    memcpy(to + PAGE - turn, noise, turn);
    memcpy(to, &k, sizeof k);
}

static void put(uint32_t slot, const struct chain *chain)
{
    ring_put(slot, chain, run->indirect ? &group[OUT] : NULL, TABLES * PAGE + slot * TABLE);
    if (run->events && ring_kick())
        events_notify();
}

/* Wait for the next used chain. */
static void get(uint32_t *slot, uint32_t *written, uint32_t done)
{
    uint64_t end = now_ms() + SECONDS * 1000;

    while (!ring_get(slot, written)) {
        if (now_ms() > end)
            die("no answer in %u s, after %u of %u bytes", SECONDS, done, run->bytes);
        if (run->events)
            events_wait(1000);
        else
            pause_ms(1);
    }
}

static void blk_submit(uint32_t slot, uint32_t type)
{
    uint64_t sector = (uint64_t)request[slot].first * (PAGE / SECTOR);
    struct virtio_blk_outhdr header = {.type = type, .sector = sector};
    bool reads = type == VIRTIO_BLK_T_IN;
    uint32_t data = (reads ? IN_DATA : OUT_DATA) + slot * REQUEST_PAGES;
    struct chain chain = {.n = 0};

    memcpy(group[OUT].at + HEADERS * PAGE + slot * sizeof header, &header, sizeof header);
    chain_add(&chain, &group[OUT], HEADERS * PAGE + slot * (uint32_t)sizeof header, sizeof header, false);
    for (uint32_t i = 0; !reads && i < request[slot].n; i++)
        page_of_data(group[OUT].at + (size_t)(data + i) * PAGE, request[slot].first + i);
    chain_add(&chain, &group[reads ? IN : OUT], data * PAGE, request[slot].n * PAGE, reads);
    group[IN].at[STATUS * PAGE + slot] = 0xFF;
    chain_add(&chain, &group[IN], STATUS * PAGE + slot, 1, true);
    request[slot].busy = true;
    put(slot, &chain);
}

static void blk_check(uint32_t slot, uint32_t type, uint32_t written)
{
    uint32_t n = request[slot].n, wanted = 1 + (type == VIRTIO_BLK_T_IN ? n * PAGE : 0);
    uint8_t status = group[IN].at[STATUS * PAGE + slot], page[PAGE];

    if (status != VIRTIO_BLK_S_OK || written != wanted)
        die("request of type %u at page %u: status %u, %u bytes written, not %u", type, request[slot].first,
            status, written, wanted);
    for (uint32_t i = 0; type == VIRTIO_BLK_T_IN && i < n; i++) {
        page_of_data(page, request[slot].first + i);
        if (memcmp(page, group[IN].at + (size_t)(IN_DATA + slot * REQUEST_PAGES + i) * PAGE, PAGE))
            die("page %u is not what was written", request[slot].first + i);
    }
    request[slot].busy = false;
}

static void blk(uint32_t type)
{
    uint32_t pages = run->bytes / PAGE, next = 0, count = 0, done = 0, slot, written;

    while (done < pages) {
        for (slot = 0; slot < CHAINS && next < pages; slot++) {
            if (request[slot].busy)
                continue;
            uint32_t n = 1 + (count++ * 5 + run->seed) % REQUEST_PAGES;
            request[slot].first = next;
            request[slot].n = n < pages - next ? n : pages - next;
            next += request[slot].n;
            blk_submit(slot, type);
        }
        get(&slot, &written, done * PAGE);
        blk_check(slot, type, written);
        done += request[slot].n;
        if (count % 64 == 0)
            publish("progress", "%x", (type == VIRTIO_BLK_T_IN ? run->bytes : 0) + done * PAGE);
    }
}

static uint32_t crc32(uint32_t crc, const uint8_t *data, uint32_t n)
{
    for (crc = ~crc; n; n--, data++) {
        crc ^= *data;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    }
    return ~crc;
}

static uint32_t rng(void)
{
    uint8_t *data = group[IN].at + IN_DATA * PAGE, nothing[PAGE];
    uint32_t crc = 0, slot, written;

    memset(nothing, 0, sizeof nothing);
    for (uint32_t done = 0, count = 0; done < run->bytes; done += written, count++) {
        uint32_t n = 1 + (count * 997 + run->seed) % PAGE;
        n = n < run->bytes - done ? n : run->bytes - done;
        struct chain chain = {.n = 0};
        memset(data, 0, PAGE);
        chain_add(&chain, &group[IN], IN_DATA * PAGE, n, true);
        put(0, &chain);
        get(&slot, &written, done);
        if (!written || written > n)
            die("%u bytes wanted, %u given", n, written);
        if (written >= 16 && !memcmp(data, nothing, written))
            die("%u bytes given, all of them zero", written);
        if (memcmp(data + written, nothing, PAGE - written))
            die("%u bytes given, but something was written behind them", written);
        crc = crc32(crc, data, written);
    }
    return crc;
}

static void take_memory(void)
{
    static const char *const names[GROUPS] = {"ring", "out", "in"};
    char areas[STORE_MAX / 2];

    pages_take(&group[RING], RING_PAGES, run, true);
    pages_take(&group[OUT], OUT_DATA + CHAINS * REQUEST_PAGES, run, false);
    pages_take(&group[IN], IN_DATA + CHAINS * REQUEST_PAGES, run, true);
    for (size_t i = 0, end = 0; i < GROUPS; i++)
        end = pages_describe(&group[i], names[i], areas, end, sizeof areas);
    publish("areas", "%s", areas);
    publish("ring", "%x %llx %llx %llx", QUEUE, (unsigned long long)group[RING].address[0],
            (unsigned long long)group[RING].address[1], (unsigned long long)group[RING].address[2]);
}

void driver_run(const struct options *options)
{
    run = options;
    take_memory();
    memset(request, 0, sizeof request);
    ring_start(&group[RING], !run->events);
    if (run->events)
        publish("port", "%x", events_open());
    publish("ready", "1");
    if (run->blk) {
        uint32_t state = run->seed;
        for (uint32_t i = 0; i < PAGE; i++) {
            state = state * 1664525u + 1013904223u;
            noise[i] = (uint8_t)(state >> 24);
        }
        blk(VIRTIO_BLK_T_OUT);
        blk(VIRTIO_BLK_T_IN);
        publish("result", "ok %x", run->bytes);
    } else {
        uint32_t crc = rng();
        publish("result", "ok %x %x", run->bytes, crc);
    }
}

unsigned int driver_release(void)
{
    if (run->events)
        events_close();
    return pages_release(group, GROUPS);
}
