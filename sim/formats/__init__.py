# SPDX-License-Identifier: Apache-2.0
"""Number formats in numpy: codes to values and values to codes."""
