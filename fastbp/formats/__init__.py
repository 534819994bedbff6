"""Files of all kinds that models are written to."""
