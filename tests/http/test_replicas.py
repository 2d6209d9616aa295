"""What Serve calls of replicas, without Serve: how they end and what they say of their health."""

from __future__ import annotations

import asyncio
import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from raymlops.errors import StoreError
from raymlops.serving.ray_replica import GatewayReplica, VersionReplica
from raymlops.serving.spec import Serving
from raymlops.settings import Settings
from raymlops.store import Store
from raymlops.testing.packages import install_version


def test_a_gateway_whose_last_write_fails_ends_all_the_same(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings.ensure_home()
    said: list[str] = []
    closed: list[str] = []

    async def main() -> None:
        replica = GatewayReplica("churn", settings, Serving(), None)
        words = ["lifespan.startup", "lifespan.shutdown"]

        async def broken() -> None:
            raise StoreError("The store is down.")

        async def receive() -> dict[str, Any]:
            return {"type": words.pop(0)}

        async def send(message: MutableMapping[str, Any]) -> None:
            said.append(message["type"])

        close = replica._store.close
        monkeypatch.setattr(replica._gateway, "close", broken)
        monkeypatch.setattr(replica._store, "close", lambda: (closed.append("store"), close()))
        await replica._application({"type": "lifespan"}, receive, send)

    asyncio.run(main())
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert closed == ["store"]
    assert "The store is down." in caplog.text


def test_a_version_whose_socket_is_not_answered_at_is_not_healthy(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ensure_home()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = Store(settings.store)
    install_version(settings, store, "churn", 3, rounds=2)
    store.close()

    async def main() -> None:
        await VersionReplica("churn", 3, settings).check_health()  # it has none, and needs none
        replica = VersionReplica("churn", 3, settings, direct=True)
        await replica.check_health()
        assert replica._path is not None
        os.unlink(replica._path)
        with pytest.raises(RuntimeError, match="version 3 does not answer at its socket"):
            await replica.check_health()

    asyncio.run(main())
