/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Descriptors for notifications, which come from the peer. */

int64_t vh_notifier(int fd, int taken);
int vh_is_counter(int fd);
int vh_notify(int fd);
int vh_take(int fd, int checked);
