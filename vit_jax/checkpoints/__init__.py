"""Orbax checkpoints of runs, and their folders."""
