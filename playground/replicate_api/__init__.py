"""What Replicate's clients call, in front of Cog's server, so that code for a pushed model runs against this machine.

The paths and fields are those of Replicate's HTTP API as its clients use them (replicate on PyPI and npm). Not for
strangers: any token is taken, and everybody sees all predictions.
"""
