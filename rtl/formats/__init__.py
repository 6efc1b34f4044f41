# SPDX-License-Identifier: Apache-2.0
"""Number formats: what a code of so many bits means."""
