"""How readable features are, measured: rules scored on other documents, groups of features,
close reading, and what a chat model makes of them.
"""
