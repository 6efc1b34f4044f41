# SPDX-License-Identifier: Apache-2.0
"""Blocks of one family side by side: cost at the same throughput, and what the model loses."""
