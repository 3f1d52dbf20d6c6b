/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* The first program of the guest: prepares the system, then does one run after the other; see guest.h. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

static bool store_ready;
static unsigned int number; /* of the run */

void pause_ms(unsigned int ms)
{
    struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};

    nanosleep(&time, NULL);
}

uint64_t now_ms(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000 + (uint64_t)time.tv_nsec / 1000000;
}

static _Noreturn void end(void)
{
    reboot(RB_AUTOBOOT); /* Linux knows of no way to power a Xen guest off, and would halt it instead */
    for (;;)
        pause();
}

static void in_run(char path[static 64], const char *name)
{
    snprintf(path, 64, "data/%u/%s", number, name);
}

void publish(const char *name, const char *format, ...)
{
    char path[64], value[STORE_MAX + 1];
    va_list arguments;

    va_start(arguments, format);
    int n = vsnprintf(value, sizeof value, format, arguments);
    va_end(arguments);
    if (n < 0 || (size_t)n >= sizeof value)
        die("%s is too long", name);
    in_run(path, name);
    store_write(path, value);
}

_Noreturn void die(const char *format, ...)
{
    char reason[512];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    printf("driver: run %u: %s\n", number, reason);
    fflush(stdout);
    if (store_ready) {
        store_ready = false; /* failing to say so must not come here again */
        publish("result", "%s", reason);
    }
    pause_ms(500); /* the console is slow */
    end();
}

/* What domain 0 writes into this run, once it does. */
static void await(const char *name, char value[static STORE_MAX + 1])
{
    char path[64];

    in_run(path, name);
    while (!store_read(path, value))
        pause_ms(20);
}

static void load_module(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
        die("cannot load %s: %s", path, strerror(errno));
    close(fd);
}

static void prepare(void)
{
    char name[64], path[96];
    FILE *order;

    if (mount("proc", "/proc", "proc", 0, NULL) || mount("dev", "/dev", "devtmpfs", 0, NULL))
        die("cannot mount /proc and /dev: %s", strerror(errno));
    if (!(order = fopen("/modules/order", "re")))
        die("cannot open /modules/order: %s", strerror(errno));
    while (fscanf(order, "%63s", name) == 1) {
        snprintf(path, sizeof path, "/modules/%s.ko", name);
        load_module(path);
    }
    fclose(order);
}

static bool one_of(const char *name, const char *value, const char *yes, const char *no)
{
    if (strcmp(value, yes) && strcmp(value, no))
        die("driver.%s=%s: neither %s nor %s", name, value, yes, no);
    return !strcmp(value, yes);
}

static uint32_t number_of(const char *name, const char *value)
{
    char *end;
    unsigned long n = strtoul(value, &end, 10);

    if (!*value || *end || n > UINT32_MAX)
        die("driver.%s=%s: no number", name, value);
    return (uint32_t)n;
}

static void set(struct options *options, const char *name, const char *value)
{
    if (!strcmp(name, "device"))
        options->blk = one_of(name, value, "blk", "rng");
    else if (!strcmp(name, "kind"))
        options->foreign = one_of(name, value, "foreign", "grant");
    else if (!strcmp(name, "readonly"))
        options->read_only = one_of(name, value, "1", "0");
    else if (!strcmp(name, "indirect"))
        options->indirect = one_of(name, value, "1", "0");
    else if (!strcmp(name, "events"))
        options->events = one_of(name, value, "1", "0");
    else if (!strcmp(name, "bytes"))
        options->bytes = number_of(name, value);
    else if (!strcmp(name, "seed"))
        options->seed = number_of(name, value);
    else
        die("driver.%s: no such option", name);
}

static struct options parse(char *text)
{
    struct options options = {.blk = true, .read_only = true, .bytes = 8 << 20, .seed = 1};
    char *rest = NULL;

    for (char *word = strtok_r(text, " \n", &rest); word; word = strtok_r(NULL, " \n", &rest)) {
        char *value = strchr(word, '=');
        if (strncmp(word, "driver.", 7) || !value)
            continue;
        *value++ = 0;
        set(&options, word + 7, value);
    }
    if (!options.bytes || options.bytes > 1u << 30 || (options.blk && options.bytes % PAGE))
        die("driver.bytes=%u: 1 to 1 GiB are possible, for a disk in whole pages", options.bytes);
    return options;
}

int main(void)
{
    char text[STORE_MAX + 1];

    prepare();
    store_open();
    store_ready = true;
    pages_open();
    FILE *line = fopen("/proc/cmdline", "re");
    if (!line || !fgets(text, sizeof text, line))
        die("cannot read /proc/cmdline: %s", strerror(errno));
    fclose(line);
    for (;; number++) {
        struct options options = parse(text);
        driver_run(&options);
        await("release", text);
        publish("left", "%x", driver_release());
        await("again", text);
    }
}
