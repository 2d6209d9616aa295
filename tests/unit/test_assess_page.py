"""`raymlops assess` and its page: what a person finds, what a machine gets, and that nothing on the page can run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from raymlops.cli import app
from raymlops.data.assess import Assess, Assessment, CheckResult, assess
from raymlops.data.assess.result import result
from raymlops.errors import ConfigError, DataError
from raymlops.report.assess_page import assess_page
from raymlops.testing.pages import Page
from raymlops.testing.tables import NOW, mixed

NASTY = "<script>alert(1)</script>'\""
PIPELINE = """
import pandas as pd
from raymlops import Assess, FrameSource, Pipeline, SplitBy
from raymlops.testing.pages import Page
from raymlops.testing.tables import mixed
import numpy as np
frame = mixed(np.random.default_rng(0), 400)
frame["who"] = np.arange(400) // 4
quick = Assess(verdicts={name: "off" for name in ("predictive", "enough_rows", "unrelated", "leak")})
churn = Pipeline(name="churn", source=FrameSource(frame, label="y"), assess=quick, split=SplitBy(group="who"))
"""


def assessment() -> Assessment:
    curve = {
        "sizes": [100, 200, 400],
        "errors": [0.5, 0.45, 0.42],
        "a": 0.3,
        "b": 1.0,
        "c": 0.4,
        "ahead": [100, 200, 400, 800, 1600],
        "low": [0.4] * 5,
        "high": [0.55] * 5,
    }
    told = "AUC rises; twice the rows: AUC +0.004 [0.001, 0.009]."
    return Assessment(
        rows=1234,
        checks=(
            result(
                f"leak:{NASTY}", "fail", 1.0, 0.999, f"Column {NASTY} leaks.", "Drop it.", scores={NASTY: 1.0, "b": 0.6}
            ),
            result("missing:b", "warn", 0.7, 0.5, "Column 'b' is missing in 70.0% of the rows.", "Drop it."),
            result("enough_rows", "pass", 0.001, 0.03, told, curve=curve),
            result("unrelated", "pass", 0.0, 0.3, "0 of 2 columns.", columns=["b"], hits={"b": 0}, runs=12),
            result("rows", "pass", 1234, 200, "There are 1234 rows; at least 200 are needed."),
        ),
    )


def test_the_page_says_what_was_found_and_what_to_do() -> None:
    page = Page(assess_page(NASTY, assessment(), now=NOW))
    text = " ".join(" ".join(page.words).split())
    assert "Not fit to train on: 1 check failed, 1 warning." in text
    assert "What to do" in text
    assert told_in_order(text, ["leaks.", "Drop it.", "Column 'b' is missing in 70.0%"])
    assert "twice the rows: AUC +0.004 [0.001, 0.009]" in text
    assert "0 of 12" in text
    assert "There are 1234 rows" in text
    assert [tag for tag, _ in page.tags].count("circle") == 3


def told_in_order(text: str, parts: list[str]) -> bool:
    places = [text.find(part) for part in parts]
    return -1 not in places and places == sorted(places)


def test_nothing_on_the_page_can_run_or_call_out() -> None:
    page = Page(assess_page(NASTY, assessment(), now=NOW))
    assert not {tag for tag, _ in page.tags} & {"script", "img", "link", "iframe", "object", "form", "a"}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on") or name in ("src", "href")]
    policy = next(attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_a_page_of_nothing_but_a_refusal() -> None:
    found = assess(pd.DataFrame({"x": [1.0], "y": [0]}), "y", task="binary", now=NOW)
    assert "There are 1 rows" in assess_page("one", found, now=NOW)


# --- the command ----------------------------------------------------------------------------------------


@pytest.fixture
def orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path / "home"))
    frame = mixed(np.random.default_rng(0), 300)
    frame.assign(answer=frame.y * 2).to_csv(tmp_path / "my orders.csv", index=False)
    frame.to_parquet(tmp_path / "orders.parquet")
    return tmp_path


def test_a_file_that_fails_ends_with_1_and_leaves_a_page(orders: Path) -> None:
    done = CliRunner().invoke(app, ["assess", str(orders / "my orders.csv"), "--label", "y"])
    assert done.exit_code == 1
    assert "not fit to train on, 1 checks failed" in done.output
    assert "leak:answer" in done.output
    page = (orders / "home" / "reports" / "my orders-data.html").read_text()
    assert "it leaks the answer" in page


def test_json_for_a_machine(orders: Path) -> None:
    arguments = ["assess", str(orders / "my orders.csv"), "--label", "y", "--drop", "answer,gift", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    found = Assessment.from_dict(json.loads(done.stdout))
    assert found.passed
    assert found.rows == 300
    assert not (orders / "home" / "reports").exists()


def test_a_pipeline_is_judged_by_its_own_spec(orders: Path) -> None:
    (orders / "churn.py").write_text(PIPELINE)
    done = CliRunner().invoke(app, ["assess", f"{orders}/churn.py:churn", "--json"])
    assert done.exit_code == 0, done.output
    names = [check["name"] for check in json.loads(done.stdout)["checks"]]
    assert "skewed_key:who" in names  # the split's group is the key
    assert not [name for name in names if name.startswith(("predictive", "leak"))]
    with pytest.raises(ConfigError, match="A pipeline's source says its own label"):
        CliRunner().invoke(app, ["assess", f"{orders}/churn.py:churn", "--label", "y"], catch_exceptions=False)


def test_what_is_missing_is_asked_for(orders: Path) -> None:
    def run(*arguments: str) -> None:
        CliRunner().invoke(app, ["assess", *arguments], catch_exceptions=False)

    path = str(orders / "orders.parquet")
    with pytest.raises(ConfigError, match="With a file also give --label"):
        run(path)
    with pytest.raises(DataError, match=r"no label column 'yy'\. Did you mean 'y'|no label column 'yy'"):
        run(path, "--label", "yy")
    with pytest.raises(DataError, match="No file matches"):
        run(str(orders / "none.csv"), "--label", "y")
    with pytest.raises(
        ConfigError, match=r"Assess\(key=...\) names a column 'cty' that is not there\. Did you mean 'city'"
    ):
        run(path, "--label", "y", "--key", "cty")


# --- the spec -------------------------------------------------------------------------------------------


def quick(spec: Assess, frame: pd.DataFrame) -> dict[str, CheckResult]:
    found = assess(frame, "y", spec=spec.without("predictive", "enough_rows", "unrelated"), now=NOW)
    return {check.name: check for check in found.checks}


def test_verdicts_and_limits_are_the_users() -> None:
    frame = mixed(np.random.default_rng(0), 300)
    frame = frame.assign(answer=frame.y * 2, copy=frame.y * 3, empty=np.nan)
    assert quick(Assess(), frame)["leak:answer"].verdict == "fail"
    found = quick(Assess(verdicts={"leak:answer": "warn", "missing": "fail", "constant": "off"}), frame)
    assert (found["leak:answer"].verdict, found["leak:copy"].verdict) == ("warn", "fail")
    assert found["missing:empty"].verdict == "fail"
    assert "constant" not in found
    assert quick(Assess(limits={"rows": 500}), frame)["rows"].message == "There are 300 rows; at least 500 are needed."


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"verdicts": {"leek": "warn"}},
            r"Assess\(verdicts=...\) names a check 'leek' that is not known. Did you mean 'leak'",
        ),
        ({"verdicts": {"leek:x": "warn"}}, "names a check 'leek' that is not known"),
        ({"verdicts": {"leak": "wran"}}, r"'wran'}\) is no verdict. Did you mean 'warn'"),
        ({"limits": {"row": 5}}, "names a check 'row' that is not known. Did you mean 'rows'"),
        ({"limits": {"rows": float("nan")}}, "is no limit: give a finite number"),
        ({"max_age": "old"}, "max_age='old' is not a duration"),
        ({"budget_rows": 10}, "too few to judge by: give 1000 or more"),
    ],
)
def test_a_spec_that_cannot_be_is_refused_when_built(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Assess(**given)


def test_columns_a_spec_names_must_be_there() -> None:
    frame = mixed(np.random.default_rng(0), 300)
    with pytest.raises(ConfigError, match=r"Assess\(key=...\) names a column 'customer' that is not there"):
        assess(frame, "y", spec=Assess(key="customer"))
    with pytest.raises(
        ConfigError, match=r"Assess\(slices=...\) names a column 'cty' that is not there. Did you mean 'city'"
    ):
        assess(frame, "y", spec=Assess(slices=("cty",)))
