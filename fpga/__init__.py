# SPDX-License-Identifier: Apache-2.0
"""Boards and open FPGA flows for any block."""
