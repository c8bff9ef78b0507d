"""Control maps: drawn from a picture by an annotator, or brought to size if they are ready-made."""
