# SPDX-License-Identifier: Apache-2.0
"""Keys and values of earlier tokens: keeping them, and choosing among them."""
