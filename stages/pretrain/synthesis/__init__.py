"""Captioned sounds, synthesised in batches on any device. Light: no imports."""
