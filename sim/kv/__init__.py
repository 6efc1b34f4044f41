# SPDX-License-Identifier: Apache-2.0
"""Golden models of the blocks around the KV cache."""
