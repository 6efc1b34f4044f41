# SPDX-License-Identifier: Apache-2.0
"""Ternary weights as two's complement codes: 0, 1, 3 for 0, +1, -1; code 2 is no weight."""

import numpy as np

CODES = np.array([0, 1, 3], dtype=np.int64)
"""Code of trit ``t`` at index ``t``: index -1 is the last."""

VALUES = np.array([0, 1, 0, -1], dtype=np.int64)
"""Trit of each code."""
