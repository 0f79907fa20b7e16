"""The SAME autoencoder. Light: nothing is imported here."""
