"""Optimiser: learning rate, update rules, moving average. Light: no imports."""
