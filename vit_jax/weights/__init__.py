"""Weights of other runs and other code bases: opened, adapted, written."""
