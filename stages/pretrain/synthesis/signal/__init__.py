"""Parts that sounds are made of: random values, tones, noise, envelopes, rooms. Light: no imports."""
