"""The trained network: frozen base, adapter, loss, evaluation. Light: no imports."""
