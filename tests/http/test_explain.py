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


async def asked(
    settings: Settings,
    folder: Path,
    *bodies: Any,
    challenger: Any = None,
    path: str = "/churn/explain",
    shadow: bool = False,
) -> list[httpx.Response]:
    store = Store(settings.store)
    install_version(settings, store, "churn", 3, rounds=20)
    gateway = Gateway(
        "churn",
        packages=Packages(settings, store, folder),
        challengers=FakeChallengers({} if challenger is None else {4: challenger}),
        store=store,
        files=Lake(settings.lake),
        sink=ListSink(),
    )
    split = TrafficSplit(number=1, champion=3)
    if challenger is not None:
        split = TrafficSplit(number=1, champion=3, challenger=4, weight=1.0, shadow=shadow)
    await gateway.apply(split)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = make_server(gateway, "/churn/predict")
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", trust_env=False
        ) as client:
            answers = [
                await (client.get(body) if isinstance(body, str) else client.post(path, json=body)) for body in bodies
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


@pytest.mark.parametrize("shadow", [False, True])
def test_a_challenger_explains_under_its_number(settings: Settings, tmp_path: Path, shadow: bool) -> None:
    settings.ensure_home()
    store = Store(settings.store)
    install_version(settings, store, "churn", 4, rounds=5, flipped=True)
    challenger = Packages(settings, store, tmp_path / "elsewhere").load(4)
    store.close()
    given = {"rows": ROWS, "request_id": "mine"}

    def ask(path: str, body: Any = given) -> httpx.Response:
        found = asked(settings, tmp_path / "cache", body, challenger=challenger, path=path, shadow=shadow)
        return asyncio.run(found)[0]

    answer = ask("/churn/versions/4/explain")
    assert answer.status_code == 200
    assert (answer.headers["x-raymlops-version"], answer.headers["x-raymlops-variant"]) == ("4", "challenger")
    assert answer.json() == {"request_id": "mine", **explain_rows(challenger, 4, ROWS)}
    assert answer.json()["rows"][0]["prediction"] == 0
    champion = ask("/churn/versions/3/explain")
    assert (champion.headers["x-raymlops-version"], champion.headers["x-raymlops-variant"]) == ("3", "champion")
    # Who names no version is explained the champion's, whatever share of the traffic the challenger has.
    assert ask("/churn/explain").json() == champion.json()
    unknown = ask("/churn/versions/7/explain")
    assert unknown.status_code == 404
    assert unknown.json()["error"]["message"] == "churn does not serve version 7; it serves 3, 4."
    bad = ask("/churn/versions/4/explain", {"rows": [{"a": "high", "b": 0.0}]})
    assert (bad.status_code, bad.headers["x-raymlops-error"]) == (422, "contract")


def test_a_challenger_that_does_not_answer_is_not_ready(settings: Settings, tmp_path: Path) -> None:
    settings.ensure_home()
    found = asked(
        settings, tmp_path / "cache", {"rows": ROWS}, challenger=BrokenChallenger(), path="/churn/versions/4/explain"
    )
    (answer,) = asyncio.run(found)
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "Version 4 of churn did not answer. Try again in a moment."


class BrokenChallenger(FakeModel):
    """Its process is gone."""

    @property
    def explainer(self) -> Any:
        raise ConnectionError("nobody is there")

    def encode(self, rows: Any) -> npt.NDArray[np.float32]:
        return np.zeros((len(rows), 3), dtype=np.float32)


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
