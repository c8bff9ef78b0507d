"""Weights on disk: a bundle's manifest and lock, its download from the hub, and the checks of its files."""
