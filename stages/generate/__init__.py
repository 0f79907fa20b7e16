"""Sound from a prompt: base or inference model, any number of adapters, one audio file."""
