# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Wire formats of device types, by name: what a device and its driver agree on, and nothing else."""
