"""What a test's own code has warned of."""

import pytest


def warned(recorded: pytest.WarningsRecorder) -> list[str]:
    """The recorded warnings, without those of files that an earlier test left to the garbage collector."""
    return [str(warning.message) for warning in recorded if warning.category is not ResourceWarning]
