# SPDX-License-Identifier: Apache-2.0
"""Table-lookup matrix-vector units."""
