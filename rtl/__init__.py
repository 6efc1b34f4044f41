# SPDX-License-Identifier: Apache-2.0
"""Hardware: Amaranth components and their configs."""
