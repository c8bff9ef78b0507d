"""Keeps other sites out: a page that is open in the same browser could otherwise use this server."""

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; connect-src 'self' ws: wss:; font-src 'self' data:; "
    # NiceGUI compiles Vue templates in the browser, and writes its styles into the page.
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}


class Guard:
    """An ASGI middleware that answers 403 to what comes from elsewhere, over HTTP and the websocket alike.

    `host` is the address that the server listens on. If that is all addresses, it is also known by its name and by any
    address in numbers: another site's name can be made to point here, a number cannot.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app = app
        self.everywhere = host in ("0.0.0.0", "::")
        self.names = LOOPBACK | {host.lower(), *([socket.gethostname().lower()] if self.everywhere else [])}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif reason := self.refusal(scope):
            await self._refuse(reason, scope, receive, send)
        else:
            await self.app(scope, receive, self._with_headers(send) if scope["type"] == "http" else send)

    def refusal(self, scope: Scope) -> str:
        """Why a request is refused, in one sentence. "" if it is not."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "").lower()
        if not self._is_ours(host):
            return f"This server is not called {host[:100]!r}. Use the address that it printed."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host:
            return "This server takes no requests from pages of other sites."
        foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if foreign and not self._opens_a_page(headers, scope):
            return "This server takes no requests from pages of other sites."
        return ""

    def _is_ours(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name in self.names:
            return True
        try:
            return self.everywhere and bool(ipaddress.ip_address(name.strip("[]")))
        except ValueError:
            return False

    @staticmethod
    def _opens_a_page(headers: dict[str, str], scope: Scope) -> bool:
        """Whether somebody followed a link to here. The other site cannot read what is shown."""
        document = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        return document and scope["type"] == "http" and scope["method"] == "GET"

    @staticmethod
    async def _refuse(reason: str, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await WebSocketClose(code=1008, reason=reason)(scope, receive, send)  # a 403 before it is accepted
        else:
            await PlainTextResponse(reason, 403)(scope, receive, send)

    @staticmethod
    def _with_headers(send: Send) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if not pair[0].lower().startswith(b"access-control-")]
                message["headers"] = [*kept, *HEADERS.items()]
            await send(message)

        return sending
