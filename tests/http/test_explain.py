"""``POST /{endpoint}/explain`` over a real socket, of real packages."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import numpy.typing as npt
import pytest

from raymlops.errors import NotReady, Overloaded, TooLarge, UnknownPath
from raymlops.explain.explanation import Explanation
from raymlops.lake import Lake
from raymlops.registry.package import download
from raymlops.serving.explaining import MAX_WAITING, ExplainDesk, explain_rows
from raymlops.serving.gateway import Gateway
from raymlops.serving.listener import make_server
from raymlops.serving.predictor import Predictor
from raymlops.serving.traffic import TrafficSplit
from raymlops.settings import Settings
from raymlops.store import Store
from raymlops.testing.packages import install_version
from raymlops.testing.serving import FakeChallengers, FakeModel, ListSink

ROWS = [{"a": 1.5, "b": -0.25}, {"a": -1.0, "b": 0.5}]


class Packages:
    """Versions out of the lake."""

    def __init__(self, settings: Settings, store: Store, folder: Path) -> None:
        self._settings, self._store, self._folder = settings, store, folder

    def load(self, version: int) -> Predictor:
        place = self._store.get("versions", f"churn/{version}")
        assert place is not None
        folder = download(Lake(self._settings.lake), place["package_key"], self._folder / str(version), place["digest"])
        return Predictor.load(folder, version, place["digest"])


async def asked(settings: Settings, folder: Path, *bodies: Any) -> list[httpx.Response]:
    store = Store(settings.store)
    install_version(settings, store, "churn", 3, rounds=20)
    gateway = Gateway(
        "churn",
        packages=Packages(settings, store, folder),
        challengers=FakeChallengers({}),
        store=store,
        files=Lake(settings.lake),
        sink=ListSink(),
    )
    await gateway.apply(TrafficSplit(number=1, champion=3))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = make_server(gateway, "/churn/predict")
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", trust_env=False
        ) as client:
            answers = [
                await (client.get(body) if isinstance(body, str) else client.post("/churn/explain", json=body))
                for body in bodies
            ]
    finally:
        server.should_exit = True
        await serving
        store.close()
    return answers


def test_each_row_is_explained_as_the_openapi_document_says(settings: Settings, tmp_path: Path) -> None:
    settings.ensure_home()
    answer, page = asyncio.run(
        asked(settings, tmp_path / "cache", {"rows": ROWS, "request_id": "mine"}, "/churn/openapi.json")
    )
    body = answer.json()
    assert answer.status_code == 200
    assert answer.headers["x-request-id"] == body["request_id"] == "mine"
    assert answer.headers["x-raymlops-version"] == "3"
    assert (body["version"], body["method"], body["units"], body["classes"]) == (3, "tree_shap", "log-odds", None)
    for row, positive in zip(body["rows"], (1, 0), strict=True):
        assert row["prediction"] == positive
        assert row["base"] + sum(row["contributions"].values()) == pytest.approx(row["output"], abs=1e-5)
        assert 1 / (1 + np.exp(-row["output"])) == pytest.approx(row["probability"], abs=1e-5)
    assert body["rows"][0]["contributions"]["a"] > 0 > body["rows"][1]["contributions"]["a"]
    document = page.json()
    assert "/churn/explain" in document["paths"]
    jsonschema.Draft202012Validator({**document, "$ref": "#/components/schemas/ExplainResponse"}).validate(body)


def test_bad_rows_get_the_errors_of_predict(settings: Settings, tmp_path: Path) -> None:
    settings.ensure_home()
    many = {"rows": ROWS[:1] * 251}
    answers = asyncio.run(
        asked(settings, tmp_path / "cache", {"rows": [{"a": "high", "b": 0.0}]}, {"lines": []}, many, "/churn/explain")
    )
    assert [(answer.status_code, answer.headers["x-raymlops-error"]) for answer in answers] == [
        (422, "contract"),
        (400, "malformed"),
        (413, "too_large"),
        (405, "method_not_allowed"),
    ]
    assert answers[2].json()["error"]["message"] == (
        "The request holds 251 rows; at most 250 are explained at once for this model. Send fewer."
    )


class Slow(FakeModel):
    """Explains when it is told to."""

    most_rows, costly = 4, True

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    @property
    def explainer(self) -> Slow:
        return self

    def encode(self, rows: Any) -> npt.NDArray[np.float32]:
        return self.contract.encode_rows(rows)

    def explain(self, x: npt.NDArray[np.float32]) -> Explanation:
        assert self.go.wait(30)
        shape = (len(x), 3)
        return Explanation(
            columns=self.contract.names,
            contributions=np.zeros(shape),
            base=np.zeros(len(x)),
            output=np.zeros(len(x)),
            units="probability",
            method="sampled_shapley",
            error=np.full(shape, 0.5),
        )


ROW = {"a": 0.5, "b": None, "c": "x"}


def test_only_so_many_wait_and_a_caller_that_left_still_holds_its_place() -> None:
    async def run() -> None:
        desk, model = ExplainDesk("churn"), Slow()
        waiting = [asyncio.ensure_future(desk.explain(model, 1, [ROW])) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="churn has 8 explanations to work out already"):
            await desk.explain(model, 1, [ROW])
        model.go.set()
        answers = await asyncio.gather(*waiting[1:])
        assert answers[0]["rows"][0]["standard_errors"] == {"a": 0.5, "b": 0.5, "c": 0.5}
        assert (await desk.explain(model, 1, [ROW]))["version"] == 1
        desk.close()
        with pytest.raises(NotReady, match="This gateway of churn is shutting down"):
            await desk.explain(model, 1, [ROW])

    asyncio.run(run())


def test_who_waits_when_the_gateway_ends_is_told_so() -> None:
    async def run() -> None:
        desk, model = ExplainDesk("churn"), Slow()
        at_work, waits = (asyncio.ensure_future(desk.explain(model, 1, [ROW])) for _ in range(2))
        await asyncio.sleep(0)
        desk.close()
        with pytest.raises(NotReady, match="This gateway of churn is shutting down"):
            await waits
        model.go.set()
        assert (await at_work)["version"] == 1

    asyncio.run(run())


def test_what_cannot_be_explained_says_so() -> None:
    model = Slow()
    with pytest.raises(TooLarge, match="at most 4 are explained at once"):
        explain_rows(model, 1, [ROW] * 5)

    async def run() -> None:
        with pytest.raises(UnknownPath, match="Version 2 of churn cannot be explained"):
            await ExplainDesk("churn").explain(object(), 2, [ROW])

    asyncio.run(run())
