"""One tool on the streams of ``drift_streams.py``, run by its own interpreter; needs numpy and the tool only.

    python drift_tools.py TOOL flags|cpu|memory FOLDER ORDER

``ORDER`` is JSON: which streams, for how long, which sizes. Each peer's method is used as its documentation shows first, with
its defaults: what a person gets who installs it. Every finished stream is a file in ``FOLDER``; what is there is not done
again, so a run may be cut off and go on later.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from drift_streams import SIZES, WINDOW, Stream, sized

Judge = Callable[[np.ndarray], bool]
Method = Callable[[np.ndarray], Judge]
SHOWN = WINDOW // 5


def watcher(reference: np.ndarray) -> Any:
    """The real monitor over columns, with the first five columns' sum as the model's score."""
    from raymlops.data.schema import Column, DataContract
    from raymlops.monitor.monitor import Monitor, Watcher
    from raymlops.registry.package import Reference

    names = tuple(f"c{i}" for i in range(reference.shape[1]))
    columns = tuple(Column(name=name, kind="number", nullable=True, minimum=None, maximum=None) for name in names)
    contract = DataContract(columns=columns, label="y", task="regression", classes=())
    held = Reference(
        columns=names,
        x=reference,
        scores=reference[:, :5].sum(axis=1).astype(np.float64),
        losses=np.abs(reference[:, 0]).astype(np.float64),
        ordered=True,
    )
    return Watcher(Monitor(second_opinion="off", alpha=1e-3), held, contract)


def raymlops(shown: int) -> Method:
    """A window is flagged by any evidence of the real monitor, of whatever size, that is shown so many of its rows."""
    from raymlops.testing.traffic import observations

    def build(reference: np.ndarray) -> Judge:
        watch, served = watcher(reference), 0

        def judge(window: np.ndarray) -> bool:
            nonlocal served
            scores, at = np.nansum(window[:, :5], axis=1), np.arange(served, served + len(window), dtype=float)
            served += len(window)
            for seen in observations(watch.bins, window, scores, at, batch_rows=WINDOW, sample_rows=shown):
                watch.take(seen)
            (report,) = watch.step(0.0)
            return any(item.drifted for item in report.evidence)

        return judge

    return build


def alibi(name: str) -> Method:
    import alibi_detect.cd as cd

    def build(reference: np.ndarray) -> Judge:
        if name == "ClassifierDrift LR":
            from sklearn.linear_model import LogisticRegression

            detector = cd.ClassifierDrift(reference, LogisticRegression(), backend="sklearn", p_val=0.05)
        else:
            detector = getattr(cd, name)(reference, p_val=0.05)

        def judge(window: np.ndarray) -> bool:
            try:
                return bool(detector.predict(window)["data"]["is_drift"])
            except ValueError:  # it refuses missing values: no verdict
                return False

        return judge

    return build


def evidently(share: float) -> Method:
    """The drift preset's own test for numeric columns of a reference above 1,000 rows: Wasserstein / sd >= 0.1."""
    import pandas as pd
    from evidently.legacy.calculations.stattests import wasserstein_stat_test

    def build(reference: np.ndarray) -> Judge:
        columns = [pd.Series(column) for column in reference.T]

        def judge(window: np.ndarray) -> bool:
            flags = [
                wasserstein_stat_test.func(then, pd.Series(now).dropna(), "num", 0.1)[1]
                for then, now in zip(columns, window.T, strict=True)
            ]
            return sum(flags) >= max(share * len(flags), 1)

        return judge

    return build


def nannyml(method: str) -> Method:
    import nannyml as nml

    def build(reference: np.ndarray) -> Judge:
        import pandas as pd

        names = [f"c{i}" for i in range(reference.shape[1])]
        calculator: Any
        if method == "pca":
            calculator = nml.DataReconstructionDriftCalculator(column_names=names, chunk_size=1000)
        else:
            calculator = nml.UnivariateDriftCalculator(column_names=names, continuous_methods=[method], chunk_size=1000)
        calculator.fit(pd.DataFrame(reference, columns=names))

        def judge(window: np.ndarray) -> bool:
            found = calculator.calculate(pd.DataFrame(window, columns=names)).filter(period="analysis").to_df()
            return bool(found.loc[:, [c for c in found.columns if c[-1] == "alert"]].to_numpy().any())

        return judge

    return build


def river(name: str) -> Method:
    from river import drift

    def build(reference: np.ndarray) -> Judge:
        detectors = [getattr(drift, name)() for _ in range(reference.shape[1])]

        def judge(window: np.ndarray) -> bool:
            found = False
            for detector, column in zip(detectors, window.T.tolist(), strict=True):
                for value in column:
                    if value == value:
                        detector.update(value)
                        found |= detector.drift_detected
            return found

        judge(reference)
        return judge

    return build


def timed(work: Callable[[], Any], least: int = 3, seconds: float = 6.0) -> float:
    """CPU milliseconds of one call, the best of several, after one that warms up."""
    work()
    best, began, calls = float("inf"), time.process_time(), 0
    while calls < least and (calls == 0 or time.process_time() - began < seconds):
        start = time.process_time()
        work()
        best, calls = min(best, time.process_time() - start), calls + 1
    return best * 1000


def own_passes(reference: np.ndarray, rows: int) -> dict[str, Callable[[np.ndarray], Any]]:
    from raymlops.monitor.drift import ColumnTests
    from raymlops.sketch.histogram import Sketch

    tests = ColumnTests(reference, [f"c{i}" for i in range(reference.shape[1])])
    found: dict[str, Callable[[np.ndarray], Any]] = {
        "binned KS": lambda x: tests.kolmogorov_smirnov(x, binned=True),
        "sketch": lambda x: Sketch.of(tests.bins, x),
    }
    if rows > 100_000:
        return found | {"exact KS of 20,000 rows": lambda x: tests.kolmogorov_smirnov(x[:: len(x) // 20_000])}
    found["exact KS"] = tests.kolmogorov_smirnov
    if rows == WINDOW:
        watch = watcher(reference)

        def step(x: np.ndarray) -> None:
            watch.observe(x, x[:, 0], 0.0)
            watch.step(0.0)

        found["whole step"] = step
    return found


def passes(tool: str, reference: np.ndarray, rows: int) -> dict[str, Callable[[np.ndarray], Any]]:
    """The passes that are timed on a window of so many rows, by name."""
    if tool == "raymlops":
        return own_passes(reference, rows)
    if tool == "alibi":
        import alibi_detect.cd as cd

        return {"alibi KSDrift": cd.KSDrift(reference, p_val=0.05).predict}
    import pandas as pd

    names = [f"c{i}" for i in range(reference.shape[1])]
    frame = pd.DataFrame(reference, columns=names)
    if tool == "evidently":
        from evidently import Report
        from evidently.metrics import ValueDrift
        from evidently.presets import DataDriftPreset

        def report(parts: list[Any]) -> Callable[[np.ndarray], Any]:
            return lambda x: Report(parts).run(pd.DataFrame(x, columns=names), frame)

        preset = {"Evidently DataDriftPreset": report([DataDriftPreset()])}
        if rows > 10_000:
            return preset
        return preset | {"Evidently ValueDrift x50": report([ValueDrift(column=name) for name in names])}
    import nannyml as nml

    size = 1000 if len(reference) < 50_000 else len(reference) // 5
    calculator = nml.UnivariateDriftCalculator(
        column_names=names, continuous_methods=["kolmogorov_smirnov"], chunk_size=size
    ).fit(frame)
    return {"NannyML univariate KS": lambda x: calculator.calculate(pd.DataFrame(x, columns=names))}


METHODS: dict[str, dict[str, Callable[[], Method]]] = {
    "raymlops": {"raymlops": lambda: raymlops(WINDOW), "raymlops from counts": lambda: raymlops(SHOWN)},
    "alibi": {
        "alibi KSDrift .05": lambda: alibi("KSDrift"),
        "alibi CVMDrift .05": lambda: alibi("CVMDrift"),
        "alibi ClassifierDrift LR .05": lambda: alibi("ClassifierDrift LR"),
    },
    "evidently": {
        "Evidently any column": lambda: evidently(0.0),
        "Evidently dataset (half the columns)": lambda: evidently(0.5),
    },
    "nannyml": {
        "NannyML JS any column": lambda: nannyml("jensen_shannon"),
        "NannyML KS any column": lambda: nannyml("kolmogorov_smirnov"),
        "NannyML PCA": lambda: nannyml("pca"),
    },
    "river": {"river ADWIN": lambda: river("ADWIN"), "river PageHinkley": lambda: river("PageHinkley")},
}


def save(target: Path, body: Any) -> None:
    """At once or not at all: a run may be cut off."""
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_suffix(".half")
    half.write_text(json.dumps(body))
    half.replace(target)


def flags(tool: str, folder: Path, order: dict[str, Any]) -> None:
    """One file a stream: the flags of its windows by method. ``order``: streams, and seconds after which to stop."""
    ends, methods = time.monotonic() + order["seconds"], {name: make() for name, make in METHODS[tool].items()}
    for stream in (Stream(**item) for item in order["streams"]):
        target = folder / tool / f"{stream.name}.json"
        if target.exists():
            continue
        if time.monotonic() > ends:
            print(f"{tool}: time is up before {stream.name}; run it again to go on", flush=True)
            return
        reference, windows = stream.draw()
        judged = {}
        for name, method in methods.items():
            judge = method(reference)
            judged[name] = [int(judge(window)) for window in windows]
        save(target, judged)


def cpu(tool: str, folder: Path, order: dict[str, Any]) -> None:
    """CPU milliseconds of each pass by size ``reference/window``."""
    found: dict[str, dict[str, float]] = {}
    for size, window in SIZES:
        if tool == "evidently" and window > 100_000:
            continue  # nearly three minutes and 2 GB: not a pass anybody makes; its memory is measured
        reference, live = sized(size, window, order["seed"])
        for name, work in passes(tool, reference, window).items():
            least = 7 if tool == "raymlops" else 3
            found.setdefault(name, {})[f"{size}/{window}"] = timed(lambda w=work, y=live: w(y), least)
    save(folder / f"{tool}.json", found)


def memory(tool: str, folder: Path, order: dict[str, Any]) -> None:
    """Peak megabytes of a process after one pass over each size ``reference/window``, each larger than the one before it; and of the
    largest, with what it was before that pass."""
    found: dict[str, float] = {}
    before = peak_mb()
    for size, window in SIZES:
        reference, live = sized(size, window, order["seed"])
        before = peak_mb()
        next(iter(passes(tool, reference, window).values()))(live)
        found[f"{size}/{window}"] = peak_mb()
    save(folder / f"{tool}.json", {**found, "peak_mb": peak_mb(), "window_mb": before})


def peak_mb() -> float:
    """Not ru_maxrss: a child starts with its parent's."""
    peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return round(int(peak) / 1024, 1)


if __name__ == "__main__":
    assert os.environ.get("OMP_NUM_THREADS") == "1", "one thread for everybody"
    work = {"flags": flags, "cpu": cpu, "memory": memory}[sys.argv[2]]
    work(sys.argv[1], Path(sys.argv[3]) / sys.argv[2], json.loads(sys.argv[4]))
