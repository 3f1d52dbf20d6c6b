# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The lab: the daemons against real peers, in processes of their own; README.md here says how."""
