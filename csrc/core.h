/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* What the C sources share: the API, the ring layouts of virtio 1.x and how shared memory is touched. */
#ifndef VHOST_CORE_H
#define VHOST_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api.h"

#endif
