"""Files as data URLs, the form in which Cog's server takes and returns them."""

import base64


def data_url(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
