"""Families of sounds, grouped by how they are synthesised. Light: no imports."""
