"""Attention layers, their kernels and rotary embedding. Light: nothing is imported here."""
