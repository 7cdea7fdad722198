"""Bodies that move as a whole."""
