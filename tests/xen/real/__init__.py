# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The Xen build and its bindings on a running Xen: these tests run in its control domain only."""
