# SPDX-License-Identifier: Apache-2.0
"""Golden models of the transformer engine: float reference and integer arithmetic."""
