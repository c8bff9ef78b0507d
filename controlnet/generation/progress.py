"""Progress bars that the readers of a log can follow."""

import sys

from controlnet.log import is_silent


class LogLines:
    """The file that tqdm writes a bar to: each state of the bar is a line of its own on stderr.

    With tqdm's carriage returns a bar is one line of a prediction's log. replicate's Python client reads only the
    beginning of a line (replicate/prediction.py), so it would see 0% until the end.
    """

    def write(self, text: str) -> None:
        if (state := text.strip("\r\n")) and not is_silent():
            sys.stderr.write(f"{state}\n")

    def flush(self) -> None:
        sys.stderr.flush()
