"""Files of weights: what a bundle is made of, where the files come from, and whether they are the right ones."""
