"""Training of the autoencoder of tiny-base. Light: nothing is imported here."""
