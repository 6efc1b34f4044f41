# SPDX-License-Identifier: Apache-2.0
"""The transformer engine and its parts."""
