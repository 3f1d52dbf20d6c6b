/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * First and only program of a Xen guest that drives one virtio queue of a back-end in domain 0.
 *
 * A run: allocate ring and buffers, publish where they are, do the requests, publish the result, wait until
 * the back-end has been told to stop, take the memory back, publish how many grants were still in use, wait
 * for the options of the next run. Names in xenstore are below data/RUN/, RUN counts from 0:
 *
 *   ring      "SIZE DESCRIPTORS AVAIL USED", addresses of the three parts
 *   areas     lines "GROUP ADDRESS BYTES": all memory of the run; groups are ring, out and in
 *   port      event channel for kicks and calls, with driver.events=1
 *   ready     written after the others: a back-end may start
 *   progress  bytes done, now and then
 *   result    "ok BYTES", for rng "ok BYTES CRC32", or what went wrong; the guest ends then
 *   release   written by domain 0: the back-end has stopped
 *   left      grants that the kernel could not take back because somebody has them mapped
 *   again     written by domain 0: options of the next run, in place of those on the command line
 *
 * Numbers are hexadecimal without 0x, except in options.
 */
#ifndef XEN_GUEST_H
#define XEN_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE 4096u
#define MAX_PAGES 64u /* of one group */
#define STORE_MAX 4096u /* bytes of a message of xenstore; what it keeps is limited to about half of that */

/* "driver.NAME=VALUE", on the kernel's command line at first. */
struct options {
    bool blk;       /* driver.device=blk: write, read back, compare; driver.device=rng: read */
    bool foreign;   /* driver.kind=foreign: guest-physical addresses; driver.kind=grant: grant references */
    bool read_only; /* driver.readonly=1: grant what the device only reads read-only, as Linux does */
    bool indirect;  /* driver.indirect=1: chains in indirect tables */
    bool events;    /* driver.events=1: kicks and calls through an event channel; 0: both sides poll */
    uint32_t bytes; /* driver.bytes: for blk a multiple of 4096 */
    uint32_t seed;  /* driver.seed: of the data that is written */
};

/* main.c */
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));
void publish(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));
void pause_ms(unsigned int ms);
uint64_t now_ms(void);

/* xenstore.c: every failure but an absent name is the end. */
void store_open(void);
void store_write(const char *name, const char *value);
bool store_read(const char *name, char value[static STORE_MAX + 1]);

/* pages.c: memory that the back-end can use. */
struct pages {
    uint8_t *at;
    uint32_t n;
    bool granted;
    uint64_t index;              /* of the grants, for the kernel */
    uint64_t address[MAX_PAGES]; /* what each page is to the device */
};

void pages_open(void);
void pages_take(struct pages *pages, uint32_t n, const struct options *options, bool device_writes);
/* Take all groups back: how many grants are still mapped by somebody else. */
unsigned int pages_release(struct pages *pages, size_t groups);
/* Append a line for each range of addresses, whatever their order is; the new end of the text. */
size_t pages_describe(const struct pages *pages, const char *group, char *text, size_t end, size_t size);

/* events.c: one event channel to domain 0. */
uint32_t events_open(void);
void events_notify(void);
void events_wait(unsigned int ms);
void events_close(void);

/* ring.c: a split ring with chains of a fixed place each. */
#define QUEUE 64u
#define CHAINS 6u
#define CHAIN_MAX 10u /* descriptors */
#define RING_PAGES 3u

struct chain {
    uint32_t n;
    struct {
        uint64_t address;
        uint32_t bytes;
        bool device_writes;
    } part[CHAIN_MAX];
};

void ring_start(const struct pages *pages, bool polling);
/* Add bytes of a group to a chain, in as few descriptors as their addresses allow. */
void chain_add(struct chain *chain, const struct pages *pages, uint32_t offset, uint32_t bytes, bool write);
/* Fill the descriptors of chain `slot`, or its part of an indirect table, and show it to the device. */
void ring_put(uint32_t slot, const struct chain *chain, const struct pages *tables, uint32_t table);
/* Whether the device wants to hear of it. */
bool ring_kick(void);
/* Take a used chain, if there is one: its slot and what the device says it has written. */
bool ring_get(uint32_t *slot, uint32_t *written);

/* driver.c: one run, from its memory to its result; then, how many grants could not be taken back. */
void driver_run(const struct options *options);
unsigned int driver_release(void);

#endif
