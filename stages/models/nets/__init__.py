"""Networks: text encoder, autoencoder, diffusion transformer and their layers. Light: nothing is imported here."""
