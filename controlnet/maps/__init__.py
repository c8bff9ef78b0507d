"""Control maps: drawn from a picture by an annotator, or only resized if they are ready-made."""
