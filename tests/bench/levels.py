# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""An entropy device in Python, at a level of choice: ``levels.py LEVEL SOCKET``, of those in LEVELS."""

import os
import sys

import vhost

ANSWER = bytes(range(64))


class Chains(vhost.Device):
    """A Python method for each request."""

    name = "chains"
    device_id = 4

    def process(self, chain: vhost.Chain) -> None:
        chain.write(os.urandom(chain.writable))


class Batches(Chains):
    """A Python method for each batch."""

    name = "batches"

    def handle(self, queue: vhost.Queue) -> None:
        while batch := queue.pop():
            batch.scatter(os.urandom(batch.writable))
            batch.push()


class ConstantChains(Chains):
    """Likewise, without the cost of entropy."""

    def process(self, chain: vhost.Chain) -> None:
        chain.write(ANSWER)


class ConstantBatches(Chains):
    """Likewise, without the cost of entropy."""

    def handle(self, queue: vhost.Queue) -> None:
        while batch := queue.pop():
            batch.scatter(ANSWER * (batch.writable // len(ANSWER)))
            batch.push()


LEVELS = {
    "chain": Chains,
    "batch": Batches,
    "constant-chain": ConstantChains,
    "constant-batch": ConstantBatches,
}

if __name__ == "__main__":
    vhost.serve(LEVELS[sys.argv[1]](), sys.argv[2])
