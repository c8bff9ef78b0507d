"""Cog's HTTP server without Docker: the schema it needs, the server process, and the command-line client."""
