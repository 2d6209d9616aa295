"""Which paths an endpoint has, who answers them, and in whose words its errors are."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from raymlops.errors import MethodNotAllowed, RaymlopsError, UnknownPath
from raymlops.serving import arrow
from raymlops.serving.inference import infer_error
from raymlops.serving.invocations import invocations_error
from raymlops.serving.protocol import error_body

# The one media type besides JSON that a path takes.
OTHER_MEDIA = {"/predict": arrow.MEDIA, "/invocations": b"text/csv"}
_VERSION = re.compile(r"/versions/([0-9]{1,18})(?=/|$)")
_MLFLOW = ("/invocations", "/ping", "/version")


@dataclass(frozen=True, slots=True)
class Route:
    """A path that was found: the name of its handler, the path without the endpoint's own prefix, the version it names."""

    handler: str
    path: str
    version: int | None


class Routes:
    """The paths of one endpoint, with and without its name in front."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint, self._prefix = endpoint, f"/{endpoint}/"
        model = f"/v2/models/{endpoint}"
        self._table: dict[str, dict[str, str]] = {
            "/predict": {"POST": "predict"},
            "/feedback": {"POST": "feedback"},
            "/explain": {"POST": "explain"},
            "/status": {"GET": "status"},
            "/health/live": {"GET": "live"},
            "/health/ready": {"GET": "ready"},
            "/openapi.json": {"GET": "openapi"},
            "/invocations": {"POST": "invocations"},
            "/ping": {"GET": "ping"},
            "/version": {"GET": "mlflow_version"},
            "/v2": {"GET": "server"},
            "/v2/health/live": {"GET": "live"},
            "/v2/health/ready": {"GET": "ready"},
            model: {"GET": "describe"},
            f"{model}/ready": {"GET": "ready"},
            f"{model}/infer": {"POST": "infer"},
        }
        self._versioned = {
            "/versions/V/explain": {"POST": "explain"},
            f"{model}/versions/V": {"GET": "describe"},
            f"{model}/versions/V/ready": {"GET": "ready"},
            f"{model}/versions/V/infer": {"POST": "infer"},
        }

    def own(self, path: str) -> str:
        """The path without the endpoint's name in front."""
        return path[len(self._prefix) - 1 :] if path.startswith(self._prefix) else path

    def find(self, path: str, method: str) -> Route:
        """Who answers.

        Raises
        ------
        UnknownPath
        MethodNotAllowed : ``details["allow"]`` holds the methods that are
        """
        own, version = self.own(path), None
        methods = self._table.get(own)
        if methods is None and (named := _VERSION.search(own)):
            version = int(named[1])
            methods = self._versioned.get(f"{own[: named.start()]}/versions/V{own[named.end() :]}")
        if methods is None:
            name = self._endpoint
            raise UnknownPath(
                f"There is nothing at {path[:200]!r}. {name!r} has: POST /{name}/predict, /explain, /feedback and /invocations, "
                f"GET /{name}/status and /openapi.json, POST /v2/models/{name}/infer."
            )
        handler = methods.get(method)
        if handler is None:
            allow = sorted(methods)
            raise MethodNotAllowed(f"{path[:200]} takes {' or '.join(allow)}, not {method[:20]}.", {"allow": allow})
        return Route(handler, own, version)


def error_words(own: str) -> Callable[[RaymlopsError], bytes]:
    """Each protocol words its errors in its own way; ``own`` is a path without the endpoint's name in front."""
    if own == "/v2" or own.startswith("/v2/"):
        return infer_error
    return invocations_error if own in _MLFLOW else error_body
