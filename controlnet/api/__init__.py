"""The model as a Python function, with the same checks, words and bytes as the server."""
