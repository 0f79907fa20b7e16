"""How tiny-base is made: captioned sounds are synthesised, and its networks trained on them. Light: no imports."""
