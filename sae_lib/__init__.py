"""Monosemanticity at Home: from text to readable features of a language model's MLP."""

__version__ = "0.1.0"
