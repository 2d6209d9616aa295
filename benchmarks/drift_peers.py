"""One peer on the streams that ``drift.py`` wrote, run by the peer's own interpreter; needs numpy and the peer only.

    python drift_peers.py PEER FOLDER RESULT.json

``FOLDER/plan.json`` names the streams and the sizes to time. Each method is used as its documentation shows first, with its
defaults: what a person gets who installs it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Judge = Callable[[np.ndarray], bool]
Method = Callable[[np.ndarray], Judge]


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


def passes(peer: str, reference: np.ndarray) -> dict[str, Callable[[np.ndarray], Any]]:
    """The pass that is timed, by name."""
    if peer == "alibi":
        import alibi_detect.cd as cd

        return {"KSDrift": cd.KSDrift(reference, p_val=0.05).predict}
    import pandas as pd

    names = [f"c{i}" for i in range(reference.shape[1])]
    frame = pd.DataFrame(reference, columns=names)
    if peer == "evidently":
        from evidently import Report
        from evidently.presets import DataDriftPreset

        return {"DataDriftPreset": lambda x: Report([DataDriftPreset()]).run(pd.DataFrame(x, columns=names), frame)}
    import nannyml as nml

    size = 1000 if len(reference) < 50_000 else len(reference) // 5
    calculator = nml.UnivariateDriftCalculator(
        column_names=names, continuous_methods=["kolmogorov_smirnov"], chunk_size=size
    ).fit(frame)
    return {"univariate KS": lambda x: calculator.calculate(pd.DataFrame(x, columns=names))}


METHODS: dict[str, dict[str, Callable[[], Method]]] = {
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


def main() -> None:
    peer, folder, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    plan = json.loads((folder / "plan.json").read_text())
    flags: dict[str, dict[str, list[int]]] = {}
    for name, make in METHODS[peer].items():
        method = make()
        flags[name] = {}
        for stream in plan["streams"]:
            x = np.load(folder / f"{stream['name']}.npy")
            judge = method(x[: plan["reference"]])
            live = x[plan["reference"] : plan["reference"] + plan["peer_windows"] * plan["window"]]
            flags[name][stream["name"]] = [
                int(judge(live[start : start + plan["window"]])) for start in range(0, len(live), plan["window"])
            ]
    cpu: dict[str, dict[str, float]] = {}
    if peer != "river":
        for rows, window in plan["sizes"]:
            if peer == "evidently" and window > 100_000:
                continue  # nearly three minutes and 2 GB: not a pass anybody makes
            x = np.load(folder / f"size-{rows}-{window}.npy")
            for name, work in passes(peer, x[:rows]).items():
                cpu.setdefault(name, {})[f"{rows}/{window}"] = timed(lambda w=work, y=x[rows:]: w(y))
    target.write_text(json.dumps({"flags": flags, "cpu_ms": cpu}))


if __name__ == "__main__":
    main()
