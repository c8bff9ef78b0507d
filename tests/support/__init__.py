"""What several test modules share. No test module imports another."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""
