# SPDX-License-Identifier: Apache-2.0
"""Running the transformer engine: its simulation, its checks, its reports."""
