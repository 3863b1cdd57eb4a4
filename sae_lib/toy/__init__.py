"""Toy models of superposition, where the features are known: models, experiments, figures, and
the gates that they are held against.
"""
