"""Toy models of superposition, where the features are known: models, experiments and figures."""
