"""The transformer of tiny-base, its conditioning and its text encoder, trained together. Light: no imports."""
