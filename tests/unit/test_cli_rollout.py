"""The verbs of a rollout reach the endpoint with their reason."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from raymlops import cli
from raymlops.loop.ray_endpoint import Endpoint


class FakeEndpoint:
    def __init__(self) -> None:
        self.called: list[tuple[str, ...]] = []

    def __getattr__(self, verb: str) -> Any:
        def call(*given: str) -> dict[str, Any]:
            self.called.append((verb, *given))
            return {"phase": ["Monitoring", {}], "champion": 2, "previous": 1, "split": None}

        return call


@pytest.mark.parametrize(
    ("verb", "called"),
    [
        ("promote", "promote"),
        ("approve", "approve"),
        ("abort", "abort"),
        ("rollback", "rollback"),
        ("undo", "rollback"),
    ],
)
def test_a_verb_with_its_reason(verb: str, called: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = FakeEndpoint()
    monkeypatch.setattr(cli, "_endpoint", lambda name: endpoint)
    result = CliRunner().invoke(cli.app, [verb, "churn", "--reason", "because"])
    assert (result.exit_code, endpoint.called) == (0, [(called, "because")])


def test_every_verb_of_the_endpoint_is_a_command() -> None:
    shown = CliRunner().invoke(cli.app, ["--help"]).output
    for verb in ("promote", "approve", "pause", "resume", "abort", "rollback", "undo"):
        assert callable(getattr(Endpoint, verb))
        assert f" {verb} " in shown
