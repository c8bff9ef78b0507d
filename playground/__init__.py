"""A page in the browser for a server of this project, and Replicate's HTTP API in front of it.

Both talk to Cog's server over HTTP alone, so it may run anywhere. None of this is in the container.
"""
