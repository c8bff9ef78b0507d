"""Many requests from a file, on Ray Data: script/batch."""
