"""The released clients of the hosted trainer, unmodified, against a server of this project: `make test-serve`."""
