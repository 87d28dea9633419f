"""The OpenAPI document of the REST API, made from its routes and models."""

from __future__ import annotations

import functools
import re
from typing import Any

from pydantic import TypeAdapter

from asyncflow import __version__
from asyncflow.server import models
from asyncflow.server.api import ROUTES, Route


@functools.cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    schemas["Problem"] = {
        "type": "object",
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
        },
        "required": ["type", "title", "status", "detail"],
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "asyncflow", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _schema(model: Any, schemas: dict[str, Any], mode: Any) -> dict[str, Any]:
    made = TypeAdapter(model).json_schema(ref_template="#/components/schemas/{model}", mode=mode)
    schemas.update(made.pop("$defs", {}))
    return made


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    if route.query is not None:
        asked = _schema(route.query, schemas, "validation")
        parameters += [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in asked["properties"].items()
        ]
    if route.method not in ("GET", "HEAD"):
        parameters.append(
            {
                "name": "X-Asyncflow",
                "in": "header",
                "required": True,
                "schema": {"type": "string", "enum": ["1"]},
            }
        )
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    made: dict[str, Any] = {
        "operationId": route.handle.__name__,
        "summary": route.about.partition("\n")[0],
        "parameters": parameters,
        "responses": {
            "200": {
                "description": "as asked",
                "content": {
                    "application/json": {"schema": _schema(route.gives, schemas, "serialization")}
                },
            },
            "default": {"description": "what is wrong", "content": problem},
        },
    }
    if route.asks:
        made["responses"]["202"] = {
            "description": "asked of an engine that has the code",
            "content": {
                "application/json": {"schema": _schema(models.Asked, schemas, "serialization")}
            },
        }
    if route.body is not None:
        made["requestBody"] = {
            "required": False,
            "content": {"application/json": {"schema": _schema(route.body, schemas, "validation")}},
        }
    if route.public:
        made["security"] = []
    return made
