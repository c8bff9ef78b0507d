"""Pictures on their way in and out: opened, measured, fitted to the canvas, written to files."""
