"""Models: families, networks, loading and quantisation of weights. Light: nothing is imported here."""
