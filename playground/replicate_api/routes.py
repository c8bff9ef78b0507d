"""The paths that `run`, `predictions.*`, `models.*` and `files` of Replicate's clients ask for."""

import asyncio
import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile

from playground.cog import Cog, Lost
from playground.replicate_api.desk import MOST_BODY, Desk, base_of, problem
from playground.replicate_api.shelf import Posted

Json = dict[str, Any]
HERE = "This server stands in for Replicate's API with /v1/predictions, /v1/files and /v1/models/{owner}/{name}."


def gone(what: str) -> JSONResponse:
    return problem(404, "Not found", f"{what} is not here. The oldest go first when there is no room for more.")


def routes(cog: Cog, folder: str, data_urls: bool = False) -> APIRouter:
    """The API in front of `cog`. It keeps files in `folder`."""
    desk = Desk(cog, Path(folder), data_urls)
    router = APIRouter()

    @router.post("/v1/predictions")
    async def create(request: Request) -> Response:
        return await desk.create(request, None)

    @router.post("/v1/models/{owner}/{name}/predictions")
    async def create_of_model(request: Request, owner: str, name: str) -> Response:
        return await desk.create(request, f"{owner}/{name}")

    @router.get("/v1/predictions")
    async def listed(request: Request) -> Response:
        newest_first = reversed(desk.predictions.items.values())
        return JSONResponse(_page([each.as_json(base_of(request), inline=False) for each in newest_first]))

    @router.get("/v1/predictions/{prediction_id}")
    async def read(request: Request, prediction_id: str) -> Response:
        prediction = desk.predictions.get(prediction_id)
        return await desk.read(request, prediction) if prediction else gone(f"The prediction {prediction_id!r}")

    @router.post("/v1/predictions/{prediction_id}/cancel")
    async def cancel(request: Request, prediction_id: str) -> Response:
        prediction = desk.predictions.get(prediction_id)
        return await desk.cancel(request, prediction) if prediction else gone(f"The prediction {prediction_id!r}")

    @router.get("/v1/models/{owner}/{name}")
    async def model(owner: str, name: str) -> Response:
        try:
            latest = await desk.version_json()
        except (Lost, ValueError) as error:
            return problem(503, "Not ready", str(error))
        nothing = dict.fromkeys(("github_url", "paper_url", "license_url", "cover_image_url", "default_example"))
        described = {"url": f"local:{owner}/{name}", "owner": owner, "name": name, "visibility": "private"}
        described |= {"description": cog.url, "run_count": len(desk.predictions.items), "latest_version": latest}
        return JSONResponse(described | nothing)

    @router.get("/v1/models/{owner}/{name}/versions")
    async def versions(owner: str, name: str) -> Response:
        try:
            return JSONResponse(_page([await desk.version_json()]))
        except (Lost, ValueError) as error:
            return problem(503, "Not ready", str(error))

    @router.get("/v1/models/{owner}/{name}/versions/{version}")
    async def version(owner: str, name: str, version: str) -> Response:
        try:
            return JSONResponse(await desk.version_json(version))
        except (Lost, ValueError) as error:
            return problem(503, "Not ready", str(error))

    @router.get("/delivery/{prediction_id}/{name}")
    async def delivered(prediction_id: str, name: str) -> Response:
        stored = desk.delivered(prediction_id, name)
        return Response(stored.file().content, media_type=stored.mime) if stored else gone(f"The file {name!r}")

    # ---- files

    @router.post("/v1/files")
    async def post_file(request: Request) -> Response:
        async with request.form(max_files=2, max_part_size=1_000_000) as form:
            content = form.get("content")
            if not isinstance(content, UploadFile):
                return problem(422, "Unprocessable request", "Expected a file in `content`, as multipart/form-data.")
            read = await content.read(MOST_BODY + 1)
            if len(read) > MOST_BODY:
                return problem(413, "Too large", f"A file has at most {MOST_BODY / 1e6:.0f} MB.")
            said = form.get("metadata") or "{}"  # a file too, if npm's client sends it
            try:
                metadata = json.loads(await said.read() if isinstance(said, UploadFile) else said)
            except ValueError:
                return problem(422, "Unprocessable request", "Expected JSON in `metadata`.")
            mime = str(form.get("type") or content.content_type or "application/octet-stream")
            name = str(form.get("filename") or content.filename or "file")
        posted = await asyncio.to_thread(Posted.write, desk.folder / "files", read, name, mime, metadata)
        desk.files.add(posted.id, posted)
        return JSONResponse(posted.as_json(base_of(request)), 201)

    @router.get("/v1/files")
    async def list_files(request: Request) -> Response:
        return JSONResponse(_page([each.as_json(base_of(request)) for each in reversed(desk.files.items.values())]))

    @router.get("/v1/files/{file_id}")
    async def get_file(request: Request, file_id: str) -> Response:
        posted = desk.files.get(file_id)
        return JSONResponse(posted.as_json(base_of(request))) if posted else gone(f"The file {file_id!r}")

    @router.get("/v1/files/{file_id}/download")
    async def download_file(file_id: str) -> Response:
        posted = desk.files.get(file_id)
        return Response(posted.file().content, media_type=posted.mime) if posted else gone(f"The file {file_id!r}")

    @router.delete("/v1/files/{file_id}")
    async def delete_file(file_id: str) -> Response:
        return Response(status_code=204) if desk.files.remove(file_id) else gone(f"The file {file_id!r}")

    # ---- the rest

    every = ["GET", "POST", "PUT", "PATCH", "DELETE", "QUERY"]

    @router.api_route("/v1/{path:path}", methods=every, include_in_schema=False)
    async def left_out(request: Request, path: str) -> Response:
        return problem(404, "Not found", f"{request.method} /v1/{path} is left out here. {HERE}")

    @router.api_route("/{path:path}", methods=["POST", "QUERY"], include_in_schema=False)
    async def without_version(request: Request, path: str) -> Response:
        said = f"Expected a path below /v1, got /{path}: let the client's base URL end with /v1."
        return problem(404, "Not found", f"{said} {HERE}")

    return router


def _page(results: list[Json]) -> Json:
    return {"previous": None, "next": None, "results": results}
