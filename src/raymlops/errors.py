"""Every error raymlops raises.

An error says what was wrong, what was there, and what to do. Each one is built from a single positional
message, so it survives pickling and therefore the trip through a Ray actor; structured facts travel in
``details``. Whether trying again can help is a type: :class:`Retryable`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class RaymlopsError(Exception):
    """Root of the tree.

    Parameters
    ----------
    message : what was wrong, what was there, what to do
    details : facts for a machine, JSON-serialisable; they survive pickling
    """

    code = "error"
    http_status = 500

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = dict(details or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.message, self.details))

    def __str__(self) -> str:
        return self.message


class Retryable(RaymlopsError):
    """Trying the same call again may succeed."""


# --- what the user declared -------------------------------------------------------------------------


class ConfigError(RaymlopsError, ValueError):
    """A pipeline, a setting or an option that cannot work; raised when it is built, not when it is run."""

    code = "config"
    http_status = 400


class UnknownEndpoint(RaymlopsError, LookupError):
    """No endpoint of that name."""

    code = "unknown_endpoint"
    http_status = 404


# --- data ------------------------------------------------------------------------------------------


class DataError(RaymlopsError):
    """The data could not be read or does not have the declared shape."""

    code = "data"


class ContractViolation(DataError, ValueError):
    """Rows that break the data contract: each failing column, what was expected, what came (at most ten)."""

    code = "contract"
    http_status = 422


class OutOfRange(ContractViolation):
    """Rows that break the data contract only by numbers that are too large."""

    code = "out_of_range"


class AssessmentFailed(DataError):
    """The data is not fit to train on; ``details["checks"]`` holds every check with its number and limit."""

    code = "assessment"


class NoJava(RaymlopsError):
    """Spark needs a JVM and none was found."""

    code = "no_java"


class SparkUnavailable(Retryable):
    """Spark on Ray did not start, or did not answer before its deadline."""

    code = "spark"


# --- search, gate, registry ------------------------------------------------------------------------


class SearchFailed(RaymlopsError):
    """No trial gave a model; ``details["errors"]`` counts the reasons."""

    code = "search"


class GateRefused(RaymlopsError):
    """The candidate did not pass the gate; ``details["checks"]`` holds the evidence."""

    code = "gate"


class UnknownVersion(RaymlopsError, LookupError):
    """The registry holds no such version."""

    code = "unknown_version"
    http_status = 404


class DigestMismatch(RaymlopsError):
    """A package's bytes are not the bytes its manifest names; it is not loaded."""

    code = "digest"


# --- serving ---------------------------------------------------------------------------------------


class RequestError(RaymlopsError, ValueError):
    """A request that cannot be answered because of what it holds. Subclasses carry the HTTP status."""

    code = "bad_request"
    http_status = 400


class MalformedRequest(RequestError):
    """Not JSON, or not the documented shape."""

    code = "malformed"


class TooLarge(RequestError):
    """More bytes or more rows than the endpoint takes."""

    code = "too_large"
    http_status = 413


class TargetTooLong(RequestError):
    """The path and query of the request are longer than any of ours."""

    code = "target_too_long"
    http_status = 414


class HeadersTooLarge(RequestError):
    """The request's headers are larger than the gateway reads."""

    code = "headers_too_large"
    http_status = 431


class RequestTimeout(RequestError):
    """The request was not complete in time."""

    code = "request_timeout"
    http_status = 408


class UnknownRequest(RequestError):
    """A label for a prediction that was never served."""

    code = "unknown_request"
    http_status = 404


class LabelConflict(RequestError):
    """A second, different label for the same prediction."""

    code = "label_conflict"
    http_status = 409


class UnknownPath(RequestError):
    """No such resource on this endpoint."""

    code = "not_found"
    http_status = 404


class MethodNotAllowed(RequestError):
    """The resource does not take this HTTP method."""

    code = "method_not_allowed"
    http_status = 405


class UnsupportedMedia(RequestError):
    """A body that is not JSON in UTF-8, or is compressed."""

    code = "unsupported_media"
    http_status = 415


class Overloaded(Retryable):
    """More requests are in flight than the gateway takes; nothing was done for this one."""

    code = "overloaded"
    http_status = 503


class DeadlineExceeded(Retryable):
    """No answer within the endpoint's deadline."""

    code = "deadline"
    http_status = 504


class ServingFailed(RaymlopsError):
    """A gateway or an isolated version did not start."""

    code = "serving"


class ModelFault(RaymlopsError):
    """The model failed, or gave a value that is not finite, on a request that keeps the contract."""

    code = "model"
    http_status = 500


class NotReady(Retryable):
    """The endpoint has no champion yet, or is draining."""

    code = "not_ready"
    http_status = 503


# --- the loop --------------------------------------------------------------------------------------


class RunInProgress(RaymlopsError):
    """Another run holds the endpoint's lease."""

    code = "run_in_progress"
    http_status = 409


class RolloutError(RaymlopsError):
    """A promote, abort or rollback that does not apply to the present state."""

    code = "rollout"
    http_status = 409


class StaleLease(RaymlopsError):
    """A write by somebody whose lease has passed to another holder; nothing was written."""

    code = "stale_lease"
    http_status = 409


class StoreError(Retryable):
    """The durable store could not be read or written."""

    code = "store"
    http_status = 503


class HistoryTampered(RaymlopsError):
    """The event log's hash chain does not verify; ``details["seq"]`` is the first bad row."""

    code = "history"


def nearest(given: str, known: Iterable[str]) -> str:
    """A hint naming the nearest known word, or all of them: `` Did you mean 'x'?``."""
    options = sorted(known)
    close = difflib.get_close_matches(given[:100], options, n=1)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(options) or 'none'}."
