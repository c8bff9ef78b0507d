"""Cog's HTTP server without Docker: its schema, the server as a process, the command-line client."""
