# SPDX-License-Identifier: Apache-2.0
"""Buses and serial lines."""
