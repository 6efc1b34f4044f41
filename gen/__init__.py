# SPDX-License-Identifier: Apache-2.0
"""From words to hardware: blocks, configs, Verilog, models, the command line."""
