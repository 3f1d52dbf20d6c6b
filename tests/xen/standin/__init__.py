# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Tests of the Xen build without Xen: on stand-ins of its libraries and of its device."""
