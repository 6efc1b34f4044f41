# SPDX-License-Identifier: Apache-2.0
"""Golden models, stimulus and cycle models of the table-lookup units."""
