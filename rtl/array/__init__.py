# SPDX-License-Identifier: Apache-2.0
"""PE arrays and their dataflows."""
