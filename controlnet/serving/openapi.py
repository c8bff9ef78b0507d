"""The fixed part of the OpenAPI document that `cog build` writes: the paths, and all components except the inputs."""

from typing import Any

Json = dict[str, Any]

ENDPOINT = "/predictions"
STATUSES = ["starting", "processing", "succeeded", "canceled", "failed"]


def document(properties: Json, enums: Json, output: Json, cog_version: str) -> Json:
    """Return the whole document.

    `properties` has the JSON schema of each input, in order, and `enums` the schema of each enumeration that they
    refer to, by name. `output` is the schema of what predict() returns. `cog_version` is the version of Cog that would
    write this document.
    """
    # A union without a default is required even if it may be null.
    required = [
        name
        for name, prop in properties.items()
        if "default" not in prop and (not prop.get("nullable") or "anyOf" in prop)
    ]
    inputs = _object("Input", properties) | ({"required": required} if required else {})
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": cog_version},
        "paths": _paths(),
        "components": {"schemas": {"Input": inputs, "Output": output} | enums | _components()},
    }


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(title: str, properties: Json) -> Json:
    return {"title": title, "type": "object", "properties": properties}


def _field(title: str, **more: Any) -> Json:
    return {"title": title, "type": "string"} | more


def _components() -> Json:
    times = ("Created At", "Started At", "Completed At")
    return {
        "PredictionRequest": _object("PredictionRequest", {"id": _field("Id"), "input": _ref("Input")}),
        "PredictionResponse": _object(
            "PredictionResponse",
            {"input": _ref("Input"), "output": _ref("Output"), "metrics": _field("Metrics", type="object")}
            | {title.lower(): _field(title) for title in ("Id", "Version", "Status", "Error", "Logs")}
            | {title.lower().replace(" ", "_"): _field(title, format="date-time") for title in times},
        ),
        "Status": _field("Status", description="An enumeration.", enum=STATUSES),
        "HTTPValidationError": _object(
            "HTTPValidationError", {"detail": {"title": "Detail", "type": "array", "items": _ref("ValidationError")}}
        ),
        "ValidationError": _object(
            "ValidationError",
            {
                "loc": {
                    "title": "Location",
                    "type": "array",
                    "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                },
                "msg": _field("Message"),
                "type": _field("Error Type"),
            },
        )
        | {"required": ["loc", "msg", "type"]},
    }


def _response(description: str, schema: Json) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _paths() -> Json:
    anything = {"200": _response("Successful Response", {})}
    invalid = {"422": _response("Validation Error", _ref("HTTPValidationError"))}
    cancel_parameter = {
        "required": True,
        "schema": _field("Prediction Id"),
        "name": "prediction_id",
        "in": "path",
    }
    return {
        "/": {"get": {"summary": "Root", "operationId": "root__get", "responses": anything}},
        "/health-check": {
            "get": {"summary": "Healthcheck", "operationId": "healthcheck_health_check_get", "responses": anything}
        },
        ENDPOINT: {
            "post": {
                "summary": "Predict",
                "description": "Run a single prediction on the model",
                "operationId": "predict_predictions_post",
                "requestBody": {"content": {"application/json": {"schema": _ref("PredictionRequest")}}},
                "responses": {"200": _response("Successful Response", _ref("PredictionResponse"))} | invalid,
            }
        },
        ENDPOINT + "/{prediction_id}/cancel": {
            "post": {
                "summary": "Cancel",
                "operationId": "cancel_predictions__prediction_id__cancel_post",
                "parameters": [cancel_parameter],
                "responses": anything | invalid,
            }
        },
    }
