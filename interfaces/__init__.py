"""The inputs of models that people move from, each as a predictor of its own: their clients work unchanged.

An interface is one class with a literal signature, because Cog reads it without running it, and a mapping to a request
of ours. `script/serve --interface NAME` serves one: its file's name, and the class if that is not Predictor.
"""
