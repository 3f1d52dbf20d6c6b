# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Virtqueues over the C core: the device's side (Queue) and the driver's side (DriverQueue).

Knows rings and guest memory; knows nothing of vhost-user, sockets or threads.
"""

from vhost.virtqueue.batch import Batch
from vhost.virtqueue.chain import Chain
from vhost.virtqueue.driver import DriverQueue
from vhost.virtqueue.lane import Lane
from vhost.virtqueue.layout import RingLayout
from vhost.virtqueue.queue import Miss, Queue

__all__ = ("Batch", "Chain", "DriverQueue", "Lane", "Miss", "Queue", "RingLayout")
