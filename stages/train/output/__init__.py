"""Files of a finished training. Light: no imports."""
