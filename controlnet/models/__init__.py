"""Models in memory: loaded strictly, in the right precision, on the right device."""
