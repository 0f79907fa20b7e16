"""The diffusion transformer, its conditioning, guidance and samplers. Light: nothing is imported here."""
