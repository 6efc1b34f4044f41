# SPDX-License-Identifier: Apache-2.0
"""The trained model that comes with the package: file, card and loss curve."""
