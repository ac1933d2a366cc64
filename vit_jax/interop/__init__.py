"""Weights of other runs and other code bases."""
