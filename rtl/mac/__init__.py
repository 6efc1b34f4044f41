# SPDX-License-Identifier: Apache-2.0
"""Multiply-accumulate."""
