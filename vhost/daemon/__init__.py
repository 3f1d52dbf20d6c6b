# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The programs that serve one device each: ``vhost-rng``, ``vhost-blk``, ``vhost-net``.

They keep to the conventions for back-end programs of the vhost-user specification and stay in the foreground.
"""

__all__ = ()
