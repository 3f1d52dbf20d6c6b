# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Virtio devices, and the base class for others.

:class:`Device` is what to derive from; :class:`vhost.devices.rng.Rng`, :class:`vhost.devices.blk.Blk` and
:class:`vhost.devices.net.Net` are devices to use or to learn from. They are not loaded from here, so that a
program loads only the one it needs.
"""

from vhost.devices.device import Device

__all__ = ("Device",)
