"""Clips, samplers and batches of a training. Light: no imports."""
