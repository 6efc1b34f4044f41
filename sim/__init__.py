# SPDX-License-Identifier: Apache-2.0
"""Truth: numpy golden models, stimulus, benches, the simulator runner."""
