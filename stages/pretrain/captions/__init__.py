"""Captions of synthesised sounds, in many wordings, and the tokenizer made from them. Light: no imports."""
