"""Cog's HTTP server without Docker: the schema it needs, the server process, and how a client asks it."""
