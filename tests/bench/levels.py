# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""An entropy device without entropy, served at a level of choice: ``levels.py chain|batch SOCKET``."""

import sys

import vhost

ANSWER = bytes(range(64))


class Chains(vhost.Device):
    """A Python method for each request."""

    name = "chains"
    device_id = 4

    def process(self, chain: vhost.Chain) -> None:
        chain.write(ANSWER)


class Batches(Chains):
    """A Python method for each batch."""

    name = "batches"

    def handle(self, queue: vhost.Queue) -> None:
        while batch := queue.pop():
            batch.scatter(ANSWER * (batch.writable // len(ANSWER)))
            batch.push()


if __name__ == "__main__":
    vhost.serve({"chain": Chains, "batch": Batches}[sys.argv[1]](), sys.argv[2])
