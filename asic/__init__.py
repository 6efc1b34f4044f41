# SPDX-License-Identifier: Apache-2.0
"""Cell libraries and open ASIC flows for any block."""
