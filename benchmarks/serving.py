"""The same XGBoost model behind raymlops and behind its peers: throughput and latency over HTTP, side by side in one run.

    python benchmarks/serving.py [--quick] [--venvs FOLDER] [--systems NAME ...]

28 float features, 200 trees of depth 6; 1 and 100 rows a request; 1, 16 and 64 keep-alive connections. Rounds are
interleaved between systems, and the figures are medians over rounds. Each system's answers for distinct rows are compared
with the model's own before each round, and each response's status counts. Peers that are not Ray are stopped (SIGSTOP) while
another one is measured. Peers are installed into environments of their own under ``--venvs`` on the first run; a peer that
cannot be installed or does not answer rightly is reported under ``missing`` with the reason.

raymlops is one endpoint with one gateway process and one with two, each asked in its own format (rows by name) and, at 100
rows, in tensors of the Open Inference Protocol, which is what MLServer is asked in.

Prints a table and, last, one line of JSON: ``ratio_best_peer`` and ``p99_ratio_best_peer`` (one gateway, rows, over the peer
with the most requests a second, at 1 row and 64 connections), ``ratio_bare_uvicorn`` (over a bare ASGI application around the
same predictor, which is no peer), ``ratio_best_peer_100rows``: at 100 rows, the best of our settings that has no more
processes than the best peer (``config_100rows``); ``ratio_best_peer_100rows_plain`` is one gateway in rows over the same peer,
``ratios_best_peer_100rows`` all settings. ``--quick`` takes under fifteen minutes on two cores, once the environments are there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from harness import (
    Client,
    Load,
    check,
    free_port,
    machine,
    median,
    pause,
    post,
    process,
    until_ready,
    versions,
)
from numpy.typing import NDArray
from venvs import install

from raymlops.serving.predictor import Predictor

PEERS = Path(__file__).parent / "peers"
BODIES = 64
Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What every system gets: the package of raymlops, XGBoost's file in it, and rows with their probabilities."""

    package: Path
    columns: tuple[str, ...]
    predictor: Predictor

    @property
    def file(self) -> Path:
        return self.package / "model.json"

    def environ(self) -> dict[str, str]:
        return {"MODEL": str(self.file), "COLUMNS": json.dumps(self.columns), "PACKAGE": str(self.package)}


Format = Callable[[Model, Matrix], Any]
Read = Callable[[Any], list[float]]


def _rows(model: Model, x: Matrix) -> Any:
    return {"rows": [dict(zip(model.columns, row, strict=True)) for row in x.tolist()]}


def _split(model: Model, x: Matrix) -> Any:
    return {"dataframe_split": {"columns": list(model.columns), "data": x.tolist()}}


def _tensor(_: Model, x: Matrix) -> Any:
    return {"inputs": [{"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}]}


@dataclass(slots=True, kw_only=True)
class System:
    """One way to serve the model.

    Attributes
    ----------
    command : of the port, the Python to use and the model
    requirements : what its environment holds; empty for raymlops' own environment
    settings : in words, for the report
    processes : that answer requests
    counts : of rows a request that it is measured with
    """

    name: str
    settings: str
    command: Callable[[int, Path, Model, Path], Sequence[Any]]
    path: str = "/predict"
    requirements: tuple[str, ...] = ()
    body: Format = _rows
    read: Read = lambda answer: answer["probabilities"]
    processes: int = 1
    counts: tuple[int, ...] = (1, 100)
    peer: bool = True
    pausable: bool = True
    server: subprocess.Popen[bytes] | None = None
    url: str = ""
    rounds: dict[tuple[int, int], list[Load]] = field(default_factory=dict)


def _uvicorn(app: str, workers: int) -> Callable[[int, Path, Model, Path], Sequence[Any]]:
    def command(port: int, python: Path, model: Model, folder: Path) -> Sequence[Any]:
        options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        where = ["--app-dir", PEERS, "--port", port, "--workers", workers]
        return [python, "-m", "uvicorn", app, *where, *options]

    return command


def _script(name: str) -> Callable[[int, Path, Model, Path], Sequence[Any]]:
    return lambda port, python, model, folder: [python, PEERS / name, port]


def _mlserver(workers: int) -> Callable[[int, Path, Model, Path], Sequence[Any]]:
    return lambda port, python, model, folder: _start_mlserver(workers, port, python, model, folder)


def _start_mlserver(workers: int, port: int, python: Path, model: Model, folder: Path) -> Sequence[Any]:
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "parallel_workers": workers,
        "debug": False,
    }
    batching = {"max_batch_size": 64, "max_batch_time": 0.002}
    described = {
        "name": "model",
        "implementation": "mlserver_xgboost.XGBoostModel",
        "parameters": {"uri": str(model.file)},
        **batching,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(described))
    return [python.parent / "mlserver", "start", folder]


def _mlflow(port: int, python: Path, model: Model, folder: Path) -> Sequence[Any]:
    import mlflow.xgboost
    import xgboost

    booster = xgboost.Booster({"nthread": 1})
    booster.load_model(model.file)
    target = folder / "model"
    if not target.exists():
        mlflow.xgboost.save_model(booster, target, model_format="json")
    where = ["--model-uri", target, "--port", port, "--host", "127.0.0.1"]
    return [python, "-m", "mlflow", "models", "serve", *where, "--env-manager", "local", "--workers", "2"]


def _bentoml(port: int, python: Path, model: Model, folder: Path) -> Sequence[Any]:
    where = ["--working-dir", PEERS, "--port", port, "--host", "127.0.0.1"]
    return [python.parent / "bentoml", "serve", "bentoml_app:Model", *where]


# MLServer's workers ask for an event loop that uvloop makes no more from 0.22 on, and end at once.
MLSERVER = ("mlserver==1.7.1", "mlserver-xgboost==1.7.1", "uvloop==0.21.0")
XGBOOST = ("xgboost-cpu==3.2.0", "numpy==2.4.6")
SYSTEMS = (
    System(
        name="bare uvicorn",
        settings="the least ASGI application around the same predictor, one batch a turn of the event loop; no peer",
        command=_uvicorn("bare_asgi:app", 1),
        peer=False,
    ),
    System(
        name="FastAPI, 1 worker",
        settings="uvicorn, uvloop, httptools; typed body; XGBoost with one thread",
        command=_uvicorn("fastapi_app:app", 1),
        requirements=("fastapi==0.165.0", "uvicorn[standard]==0.54.0", *XGBOOST),
    ),
    System(
        name="FastAPI, 2 workers",
        settings="the same with two workers",
        command=_uvicorn("fastapi_app:app", 2),
        processes=2,
        requirements=("fastapi==0.165.0", "uvicorn[standard]==0.54.0", *XGBOOST),
    ),
    System(
        name="BentoML",
        settings="two workers, adaptive batching",
        command=_bentoml,
        processes=2,
        requirements=("bentoml==1.4.39", *XGBOOST),
        read=lambda answer: answer,
    ),
    System(
        name="LitServe",
        settings="batches of up to 64 requests within 2 ms, fast queue",
        command=_script("litserve_app.py"),
        requirements=("litserve==0.2.19", *XGBOOST),
    ),
    System(
        name="MLServer",
        settings="its XGBoost runtime, adaptive batching (64, 2 ms), inference in the server's process",
        command=_mlserver(0),
        path="/v2/models/model/infer",
        requirements=MLSERVER,
        body=_tensor,
        read=lambda answer: answer["outputs"][0]["data"],
    ),
    System(
        name="MLServer, 2 workers",
        settings="the same with two inference processes",
        command=_mlserver(2),
        path="/v2/models/model/infer",
        requirements=MLSERVER,
        processes=2,
        body=_tensor,
        read=lambda answer: answer["outputs"][0]["data"],
    ),
    System(
        name="mlflow models serve",
        settings="two workers",
        command=_mlflow,
        processes=2,
        path="/invocations",
        body=_split,
        read=lambda answer: answer["predictions"],
    ),
    System(
        name="Ray Serve",
        settings="one deployment that takes the Starlette request, default settings",
        command=_script("ray_serve_app.py"),
        pausable=False,
    ),
)


class Bench:
    """Starts the systems and measures them in turn."""

    def __init__(self, venvs: Path, folder: Path, stack: ExitStack) -> None:
        self.venvs, self.folder, self._stack = venvs, folder, stack
        self.client = Client(venvs / "client")
        self.missing: dict[str, str] = {}
        self.systems: list[System] = []
        self.model: Model = None  # type: ignore[assignment]
        rng = np.random.default_rng(1)
        self._x = {rows: rng.normal(size=(BODIES if rows == 1 else 16, rows, 28)) for rows in (1, 100)}

    def start_raymlops(self) -> dict[str, Any]:
        """The first systems; what they package is what the others serve. Returns the package's manifest."""
        out, log = self.folder / "place.json", self.folder / "raymlops" / "log.txt"
        home = self.folder / "raymlops" / "home"
        environ = {
            "RAYMLOPS_HOME": str(home),
            "RAYMLOPS_RAY_ADDRESS": "local",
            "RAYMLOPS_HTTP_PORT": str(free_port()),
        }
        ports = [free_port(), free_port()]
        command = [sys.executable, PEERS / "raymlops_app.py", out, *ports]
        server = self._stack.enter_context(process(command, log, **environ))
        until_ready(lambda: json.loads(out.read_text()), server, log, 300)
        said = json.loads(out.read_text())
        predictor = Predictor.load(said["package"])
        self.model = Model(package=Path(said["package"]), columns=predictor.contract.names, predictor=predictor)
        for gateways, port in enumerate(ports, 1):
            name = "raymlops" if gateways == 1 else f"raymlops, {gateways} gateways"
            words = f"{gateways} gateway process on Ray Serve, its own listener; routing, monitor and prediction log on"
            kept: dict[str, Any] = {"command": lambda *_: command, "peer": False, "pausable": False, "server": server}
            url, endpoint = f"http://127.0.0.1:{port}", f"bench{gateways}"
            rows = System(name=name, settings=words, processes=gateways, url=f"{url}/{endpoint}/predict", **kept)
            tensors = System(
                name=f"{name}, tensors",
                settings=f"{words}; Open Inference Protocol",
                processes=gateways,
                counts=(100,),
                url=f"{url}/v2/models/{endpoint}/infer",
                body=_tensor,
                read=lambda answer: answer["outputs"][1]["data"],
                **kept,
            )
            for system in (rows, tensors):
                self.verify(system, 1)
                self.systems.append(system)
        return dict(said["manifest"])

    def start(self, system: System) -> None:
        """Install and start a peer; one that cannot be is noted with the reason."""
        port, folder = free_port(), self.folder / system.name.replace(" ", "-").replace(",", "")
        folder.mkdir(parents=True)
        log = folder / "log.txt"
        system.url = f"http://127.0.0.1:{port}{system.path}"
        try:
            python = Path(sys.executable)
            if system.requirements:
                name = system.name.split(",")[0].lower()
                python = install(self.venvs, name, system.requirements)
            command = system.command(port, python, self.model, folder)
            environ = self.model.environ()
            if not system.requirements:
                environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
            system.server = self._stack.enter_context(process(command, log, **environ))
            until_ready(lambda: self.verify(system, 1), system.server, log, 120)
            self.verify(system, 100)
        except RuntimeError as error:
            self.missing[system.name] = str(error)
            print(f"{system.name}: missing: {error}", flush=True)
            return
        print(f"{system.name} answers", flush=True)
        self.systems.append(system)
        if system.pausable:
            pause(system.server, True)

    def bodies(self, system: System, rows: int) -> list[bytes]:
        return [json.dumps(system.body(self.model, x)).encode() for x in self._x[rows]]

    def verify(self, system: System, rows: int) -> None:
        """Every eighth body is answered with the model's own probabilities."""
        for x, body in list(zip(self._x[rows], self.bodies(system, rows), strict=True))[::8]:
            expected = self.model.predictor.predict(x.astype(np.float32)).tolist()
            check(system.name, [float(value) for value in system.read(post(system.url, body))], expected)

    def measure(self, system: System, rows: int, connections: int, seconds: float) -> None:
        server = system.server
        if system.pausable and server is not None:
            pause(server, False)
        self.verify(system, rows)
        bodies = self.bodies(system, rows)
        self.client.run(system.url, bodies, connections, 1)
        load = self.client.run(system.url, bodies, connections, seconds)
        system.rounds.setdefault((rows, connections), []).append(load)
        if system.pausable and server is not None:
            pause(server, True)
        print(
            f"{system.name:29} {rows:4} rows {connections:3} connections: {load.rps:8.0f}/s  p50 {load.p50_ms:8.2f} ms  "
            f"p99 {load.p99_ms:8.2f} ms  errors {load.errors}",
            flush=True,
        )


def summary(systems: Sequence[System]) -> dict[str, Any]:
    """The ratios."""
    figures = {s.name: {key: median(loads) for key, loads in s.rounds.items()} for s in systems}
    peers = [s.name for s in systems if s.peer]
    ours = figures["raymlops"]
    result: dict[str, Any] = {}
    if peers:
        best = max(peers, key=lambda name: figures[name][1, 64]["rps"])
        result["best_peer"] = best
        result["ratio_best_peer"] = round(ours[1, 64]["rps"] / figures[best][1, 64]["rps"], 2)
        result["p99_ratio_best_peer"] = round(ours[1, 64]["p99_ms"] / figures[best][1, 64]["p99_ms"], 3)
        many = {name: max(f["rps"] for (rows, _), f in figures[name].items() if rows == 100) for name in figures}
        best_many = max((s for s in systems if s.peer), key=lambda s: many[s.name])
        own = {s.name: round(many[s.name] / many[best_many.name], 2) for s in systems if s.name.startswith("raymlops")}
        fitting = [s.name for s in systems if s.name in own and s.processes <= best_many.processes]
        config = max(fitting, key=lambda name: own[name])
        result["best_peer_100rows"] = best_many.name
        result["ratio_best_peer_100rows"], result["config_100rows"] = own[config], config
        result["ratio_best_peer_100rows_plain"], result["ratios_best_peer_100rows"] = own["raymlops"], own
    if "bare uvicorn" in figures:
        result["ratio_bare_uvicorn"] = round(ours[1, 64]["rps"] / figures["bare uvicorn"][1, 64]["rps"], 2)
    result["systems"] = {
        s.name: {
            "settings": s.settings,
            **{f"{rows} rows, {n} connections": figures[s.name][rows, n] for rows, n in sorted(figures[s.name])},
        }
        for s in systems
    }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds of 3 s in place of three of 8 s")
    home = Path(os.environ.get("RAYMLOPS_HOME") or "~/.raymlops").expanduser()
    parser.add_argument("--venvs", type=Path, default=home / "benchmarks", help="where peers are installed")
    parser.add_argument("--systems", nargs="*", choices=[s.name for s in SYSTEMS], help="only these beside raymlops")
    arguments = parser.parse_args()
    rounds, seconds = (2, 3.0) if arguments.quick else (3, 8.0)
    cells = [(1, 1), (1, 16), (1, 64), (100, 16)] + ([] if arguments.quick else [(100, 1), (100, 64)])
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        bench = Bench(arguments.venvs.absolute(), Path(scratch), stack)
        described = machine()
        manifest = bench.start_raymlops()
        for system in SYSTEMS:
            if arguments.systems is None or system.name in arguments.systems:
                bench.start(system)
        for number in range(rounds):
            for rows, connections in cells:
                # Each round begins with another system, so that none has always the same neighbour.
                shift = number % len(bench.systems)
                for system in (*bench.systems[shift:], *bench.systems[:shift]):
                    if rows in system.counts:
                        bench.measure(system, rows, connections, seconds)
        result = {
            "benchmark": "serving",
            **summary(bench.systems),
            "missing": bench.missing,
            "client": bench.client.name,
            "rounds": rounds,
            "seconds": seconds,
            "machine": described,
            "versions": {
                **{p.split("==")[0]: p.split("==")[1] for s in SYSTEMS for p in s.requirements},
                **versions("raymlops", "ray", "uvicorn", "uvloop", "httptools", "xgboost", "onnxruntime", "mlflow"),
            },
            "batch_us": manifest["batch_us"],
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
