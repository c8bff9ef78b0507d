"""The procedural world that the tiny bundle is trained on: scenes, their renderer, and the training."""
