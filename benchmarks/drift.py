"""False alarms, delay and CPU of drift detectors: raymlops, alibi-detect, Evidently, NannyML and river, same streams.

    python benchmarks/drift.py [--quick] [--cache FOLDER] [--seed N] [--tools raymlops,alibi,evidently,nannyml,river]
                               [--parts flags,cpu,memory] [--results FOLDER] [--minutes M]

A flagged window before a change is a false alarm; the delay is how many windows pass until the first alarm after it (streams:
``drift_streams.py``). raymlops spends its whole budget of one false alarm in 1,000 windows, of which half belongs to outcomes,
which have no labels here. ``from counts`` is the same monitor when a gateway shows it one row in five, as it does at high
traffic. CPU is process time with one thread, 50 columns; memory is a process's peak with a window of a million rows. Peers get
virtual environments of their own, kept in ``--cache``.

Parts may run apart, one tool after the other, ``--minutes`` at a time: ``--results`` keeps what is done and the tables show what
is there. The last line printed is JSON; ``goals`` in it are figures beside their targets. ``--quick``: fewer seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from drift_streams import CHANGE, CHANGES, PHIS, SIZES, plan
from venvs import environment, venv

OWN = "raymlops"
PACKAGES = {
    "alibi": ("alibi-detect==0.13.0", "numpy==1.26.4"),
    "evidently": ("evidently==0.7.23", "pandas==2.3.3", "numpy==1.26.4"),
    "nannyml": ("nannyml==0.13.1", "statsmodels", "pandas==2.3.3", "numpy==1.26.4"),
    "river": ("river==0.26.1",),
}
TIMED = (OWN, "alibi", "evidently", "nannyml")
IMPORTS = {OWN: "import raymlops.monitor.drift", "alibi": "from alibi_detect.cd import KSDrift"}
Flags = dict[str, dict[str, list[list[int]]]]
"""By method and kind of stream the flags of each seed's windows."""


def false_alarms(runs: list[list[int]]) -> float:
    """In 1,000 windows."""
    return round(1000 * sum(map(sum, runs)) / sum(map(len, runs)), 2)


def delays(runs: list[list[int]]) -> list[int | None]:
    return [next((i + 1 for i, flag in enumerate(run[CHANGE:]) if flag), None) for run in runs]


def median(values: list[int | None]) -> float | None:
    """Median delay; a change never found counts as later than any other."""
    found = statistics.median_low([float("inf") if v is None else v for v in values])
    return None if found == float("inf") else found


GOALS = {
    "cpu_ratio_alibi_1k": 1 / 10,
    "cpu_ratio_alibi_10k": 1 / 4,
    "cpu_ratio_alibi_100k": 1 / 3.5,
    "cpu_ratio_binned_alibi_10k": 1 / 25,
    "cpu_ratio_binned_alibi_100k": 1 / 25,
    "cpu_ratio_binned_alibi_1m": 1 / 10,
    "cpu_ratio_sampled_alibi_1m": 1 / 30,
    "cpu_ratio_nannyml_1k": 1 / 8,
    "cpu_ratio_nannyml_10k": 1 / 6,
    "cpu_ratio_binned_nannyml_100k": 1 / 1.5,
    "cpu_ratio_evidently_1k": 1 / 500,
    "cpu_ratio_evidently_10k": 1 / 150,
    "cpu_ratio_evidently_100k": 1 / 60,
    "cpu_ratio_evidently_values_10k": 1 / 80,
    "cpu_ratio_step_evidently_1k": 1 / 20,
    "import_cpu_ratio_alibi": 1 / 5,
    "import_rss_ratio_alibi": 1 / 3,
    "peak_memory_ratio_evidently_1m": 1 / 4,
    "false_alarms_per_1000_iid": 1.0,
    "false_alarms_per_1000_ar8": 1.0,
    "false_alarm_ratio_alibi_iid": 1 / 30,
    "false_alarm_ratio_evidently_iid": 1 / 60,
    "false_alarm_ratio_nannyml_iid": 1 / 500,
    "delay_mean_shift_after_alibi": 1.0,
    "delay_correlation": 3.0,
}
"""At most, with the budget of one false alarm in 1,000 windows."""


def goals(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each figure that was measured beside its target."""
    return {
        name: {"found": found[name], "at_most": round(limit, 4), "reached": found[name] <= limit}
        for name, limit in GOALS.items()
        if found.get(name) is not None
    }


def import_cost(python: Path | str, statement: str, env: dict[str, str]) -> dict[str, float]:
    code = (
        "import time\nbefore=time.process_time()\n"
        f"{statement}\n"
        # Not ru_maxrss: a child starts with its parent's.
        "peak=[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')]\n"
        "print(time.process_time()-before, int(peak[0])/1024)"
    )
    out = subprocess.run([str(python), "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    seconds, megabytes = out.split()[-2:]
    return {"cpu_s": round(float(seconds), 2), "rss_mb": round(float(megabytes), 1)}


def table(title: str, rows: dict[str, dict[str, Any]]) -> None:
    if not rows:
        return
    heads = list(dict.fromkeys(head for cells in rows.values() for head in cells))
    print(f"\n{title}\n" + "method".ljust(38) + "".join(head[:21].rjust(23) for head in heads))
    for name, cells in rows.items():
        said = ("-" if h not in cells else "never" if cells[h] is None else str(cells[h]) for h in heads)
        print(name.ljust(38) + "".join(cell.rjust(23) for cell in said))


def work(options: argparse.Namespace, results: Path) -> None:
    """Do what was asked for and is not in ``results`` yet, each tool in its own interpreter."""
    (own, own_changed), (few, few_changed) = ((32, 3), (1, 1)) if options.quick else ((64, 5), (3, 3))
    for tool in options.tools.split(","):
        python: Path | str | None = sys.executable
        env = dict(os.environ)
        if tool != OWN:
            python, env = venv(options.cache, tool, PACKAGES[tool]), environment()
        if python is None:
            continue
        streams = plan(options.seed, own, own_changed) if tool == OWN else plan(options.seed, few, few_changed)
        for part in filter(None, options.parts.split(",")):
            if part != "flags" and (tool not in TIMED or (results / part / f"{tool}.json").exists()):
                continue
            order = {
                "seed": options.seed,
                "seconds": 60 * options.minutes,
                "streams": [asdict(stream) for stream in streams],
            }
            script = Path(__file__).with_name("drift_tools.py")
            command = [str(python), str(script), tool, part, str(results), json.dumps(order)]
            if subprocess.run(command, env=env).returncode != 0:
                print(f"{tool}: {part} failed, see above", flush=True)
            elif part == "cpu" and tool in IMPORTS:
                cost = import_cost(python, IMPORTS[tool], env)
                (results / part / f"{tool}.import").write_text(json.dumps(cost))


def read(results: Path, part: str, form: str = "json") -> dict[str, Any]:
    """By tool, ours first."""
    found = {path.stem: json.loads(path.read_text()) for path in (results / part).glob(f"*.{form}")}
    return {tool: found[tool] for tool in (OWN, *PACKAGES) if tool in found}


def read_flags(results: Path) -> Flags:
    flags: Flags = {}
    for tool in (OWN, *PACKAGES):
        for path in sorted((results / "flags" / tool).glob("*.json")):
            kind = path.stem.rsplit("-", 1)[0]
            for method, run in json.loads(path.read_text()).items():
                flags.setdefault(method, {}).setdefault(kind, []).append(run)
    return flags


def figures(alarms: dict[str, Any], late: dict[str, Any], cpu: dict[str, Any], results: Path) -> dict[str, Any]:
    """The figures that have targets, and those a reader of the JSON looks for."""
    memory, imports = read(results, "memory"), read(results, "cpu", "import")

    def ratio(mine: str, theirs: str, window: int, reference: int = 10_000) -> float | None:
        key = f"{reference}/{window}"
        if key not in cpu.get(mine, {}) or key not in cpu.get(theirs, {}):
            return None
        return round(cpu[mine][key] / cpu[theirs][key], 5)

    def fewer(theirs: str) -> float | None:
        mine, other = alarms.get(OWN, {}).get("iid"), alarms.get(theirs, {}).get("iid")
        return None if mine is None or not other else round(mine / other, 5)

    def share(bodies: dict[str, Any], name: str, other: str) -> float | None:
        return round(bodies[OWN][name] / bodies[other][name], 3) if {OWN, other} <= bodies.keys() else None

    own, alibi = late.get(OWN, {}), late.get("alibi KSDrift .05", {})
    both = own.get("mean_shift") is not None and alibi.get("mean_shift") is not None
    return {
        **{f"false_alarms_per_1000_{kind}": value for kind, value in alarms.get(OWN, {}).items()},
        **{f"delay_{kind}": value for kind, value in own.items()},
        "delay_mean_shift_after_alibi": own["mean_shift"] - alibi["mean_shift"] if both else None,
        "false_alarm_ratio_alibi_iid": fewer("alibi KSDrift .05"),
        "false_alarm_ratio_evidently_iid": fewer("Evidently any column"),
        "false_alarm_ratio_nannyml_iid": fewer("NannyML JS any column"),
        "cpu_ratio_alibi_1k": ratio("exact KS", "alibi KSDrift", 1000),
        "cpu_ratio_alibi_10k": ratio("exact KS", "alibi KSDrift", 10_000),
        "cpu_ratio_alibi_100k": ratio("exact KS", "alibi KSDrift", 100_000, 100_000),
        "cpu_ratio_binned_alibi_10k": ratio("binned KS", "alibi KSDrift", 10_000),
        "cpu_ratio_binned_alibi_100k": ratio("binned KS", "alibi KSDrift", 100_000, 100_000),
        "cpu_ratio_binned_alibi_1m": ratio("binned KS", "alibi KSDrift", 1_000_000),
        "cpu_ratio_sampled_alibi_1m": ratio("exact KS of 20,000 rows", "alibi KSDrift", 1_000_000),
        "cpu_ratio_nannyml_1k": ratio("exact KS", "NannyML univariate KS", 1000),
        "cpu_ratio_nannyml_10k": ratio("exact KS", "NannyML univariate KS", 10_000),
        "cpu_ratio_binned_nannyml_100k": ratio("binned KS", "NannyML univariate KS", 100_000, 100_000),
        "cpu_ratio_evidently_1k": ratio("exact KS", "Evidently DataDriftPreset", 1000),
        "cpu_ratio_evidently_10k": ratio("exact KS", "Evidently DataDriftPreset", 10_000),
        "cpu_ratio_evidently_100k": ratio("exact KS", "Evidently DataDriftPreset", 100_000, 100_000),
        "cpu_ratio_evidently_values_10k": ratio("exact KS", "Evidently ValueDrift x50", 10_000),
        "cpu_ratio_step_evidently_1k": ratio("whole step", "Evidently DataDriftPreset", 1000),
        "import_cpu_ratio_alibi": share(imports, "cpu_s", "alibi"),
        "import_rss_ratio_alibi": share(imports, "rss_mb", "alibi"),
        "peak_memory_ratio_evidently_1m": share(memory, "peak_mb", "evidently"),
        "peak_mb_1m": {tool: body["peak_mb"] for tool, body in memory.items()},
        "peak_mb": memory,
        "imports": imports,
    }


def tell(results: Path) -> None:
    """Print every table that ``results`` holds figures for."""
    flags = read_flags(results)
    still = {name: {kind: runs[kind] for kind in PHIS if kind in runs} for name, runs in flags.items()}
    moved = {name: {kind: runs[kind] for kind in CHANGES if kind in runs} for name, runs in flags.items()}
    alarms = {name: {kind: false_alarms(run) for kind, run in runs.items()} for name, runs in still.items()}
    late = {name: {kind: median(delays(run)) for kind, run in runs.items()} for name, runs in moved.items()}
    cpu = {name: cells for body in read(results, "cpu").values() for name, cells in body.items()}
    found = figures(alarms, late, cpu, results)
    table("False alarms per 1,000 windows without a change", alarms)
    table("Windows until the change is found (median)", late)
    sizes = [f"{reference}/{window}" for reference, window in SIZES]
    table(
        "CPU ms, 50 columns, reference/window rows",
        {name: {key: round(each[key], 2) for key in sizes if key in each} for name, each in cpu.items()},
    )
    table("Peak MB after a pass over reference/window rows of 50 columns", read(results, "memory"))
    print("(a method that flags most windows without a change finds every change at once: read both tables together)")
    print(f"\nimport: {found['imports']}")
    print("\nGoal".ljust(38) + "found".rjust(12) + "at most".rjust(12))
    for name, goal in goals(found).items():
        missed = "" if goal["reached"] else "  MISSED"
        print(name.ljust(37) + str(goal["found"]).rjust(12) + str(goal["at_most"]).rjust(12) + missed)
    result = {
        "benchmark": "drift",
        **found,
        "goals": goals(found),
        "windows_without_change": {
            name: {k: sum(map(len, r)) for k, r in each.items()} for name, each in still.items()
        },
        "delays": {kind: delays(run) for kind, run in moved.get(OWN, {}).items()},
        "from_counts": {
            "false_alarms_per_1000": alarms.get(f"{OWN} from counts"),
            "delay": late.get(f"{OWN} from counts"),
        },
        "cpu_ms": cpu,
        "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("raymlops", "numpy", "scipy")},
        "peers": {"false_alarms_per_1000": alarms, "delay_windows": late, "packages": PACKAGES},
    }
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer seeds: about a quarter of an hour on two cores")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "raymlops-peers", help="peers' venvs")
    parser.add_argument("--seed", type=int, default=1000, help="first seed; others follow")
    parser.add_argument("--tools", default=",".join((OWN, *PACKAGES)), help="which to run")
    parser.add_argument(
        "--parts",
        default="flags,cpu,memory",
        help="what to run; only cpu needs a quiet machine. Empty: show what --results holds",
    )
    parser.add_argument("--results", type=Path, help="where to keep what is done, to go on from it")
    parser.add_argument("--minutes", type=float, default=1e6, help="of flags for a tool; run it again to go on")
    options = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":  # numpy reads it once, when it is loaded
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **threads})
    with tempfile.TemporaryDirectory() as scratch:
        results = options.results or Path(scratch)
        work(options, results)
        tell(results)


if __name__ == "__main__":
    main()
