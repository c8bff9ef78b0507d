"""script/predict: one prediction from the command line."""
