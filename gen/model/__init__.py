# SPDX-License-Identifier: Apache-2.0
"""The language model that the project ships: tokenizer, training, packed file, generation."""
