"""What the browser sends and fetches over plain HTTP: pictures are too large for NiceGUI's websocket."""

from collections.abc import Mapping
from typing import Protocol

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse

from playground.pictures import MOST_BYTES, NoPicture
from playground.programs import LANGUAGES
from playground.tab import Tab


class Open(Protocol):
    """A tab that is open in a browser."""

    tab: Tab

    async def take_file(self, name: str, content: bytes) -> None: ...
    async def take_drawing(self, name: str, layer: bytes | None, sheet: bool, final: bool) -> None: ...
    def program(self, language: str) -> str: ...


def tab_routes(tabs: Mapping[str, Open]) -> APIRouter:
    """Routes for the open tabs, by their tokens."""
    router = APIRouter(prefix="/tab/{token}")

    def find(token: str) -> Open:
        if token not in tabs:
            raise HTTPException(404, "This tab is closed. Reload the page.")
        return tabs[token]

    async def taken(request: Request) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                raise HTTPException(413, f"Choose a file of at most {MOST_BYTES / 1e6:.0f} MB.")
        return bytes(body)

    def field_of(page: Open, name: str) -> str:
        field = page.tab.form.fields.get(name)
        if field is None or field.kind != "picture":
            raise HTTPException(404, f"There is no picture {name!r}.")
        return name

    @router.put("/{name}/file")
    async def put_file(token: str, name: str, request: Request) -> Response:
        page = find(token)
        try:
            await page.take_file(field_of(page, name), await taken(request))
        except NoPicture as error:
            return PlainTextResponse(str(error), 415)
        return Response(status_code=204)

    @router.put("/{name}/layer")
    async def put_layer(token: str, name: str, request: Request, sheet: bool, final: bool) -> Response:
        page = find(token)
        try:
            await page.take_drawing(field_of(page, name), await taken(request) or None, sheet, final)
        except NoPicture as error:
            return PlainTextResponse(str(error), 415)
        return Response(status_code=204)

    @router.get("/file/{digest}")
    async def get_file(token: str, digest: str) -> Response:
        file = find(token).tab.files().get(digest)
        if file is None:
            raise HTTPException(404, "This file has been replaced by a newer one.")
        return Response(file.content, media_type=file.mime, headers={"cache-control": "private, max-age=3600"})

    @router.get("/program/{language}")
    async def get_program(token: str, language: str) -> Response:
        if language not in LANGUAGES:
            raise HTTPException(404, f"There is no program in {language!r}, only in {', '.join(LANGUAGES)}.")
        return PlainTextResponse(find(token).program(language), headers={"cache-control": "no-store"})

    return router
