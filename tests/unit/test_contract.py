"""Contracts that a person states: the file, what it refuses, what it enforces on data and on requests, and its diff."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from raymlops import FrameSource, Pipeline
from raymlops.data.columns import encode_frame, encode_table, encode_text
from raymlops.data.contract import Declared
from raymlops.data.contract_diff import diff_contracts
from raymlops.data.contract_rules import Rule
from raymlops.data.contract_text import parse, read, to_yaml
from raymlops.data.schema import DataContract, learn_contract
from raymlops.errors import ConfigError, ContractViolation

NOW = pd.Timestamp("2026-02-01").timestamp()
FRAME = pd.DataFrame(
    {
        "age": [31, 45, 22, 60],
        "spend": [1.5, np.nan, 3.0, 4.5],
        "member": [True, False, True, True],
        "city": ["no", "Bergen", "yes", "Tromsø"],
        "customer": [1, 2, 2, 3],
        "ts": pd.date_range("2026-01-30", periods=4, freq="h"),
        "left": ["yes", "no", "no", "yes"],
    }
)
ROW = {"age": 31, "spend": 1.5, "member": True, "city": "Bergen"}
WHOLE = """
label: left
task: binary
classes: ["no", "yes"]
unique: [[customer, ts]]
max_age: 7d
columns:
  age: {kind: integer, nullable: false, range: [18, 99]}
  spend: {kind: number, nullable: true, range: [0, null]}
  member: {kind: boolean, nullable: false}
  city: {kind: category, nullable: false, categories: ["no", "yes", Bergen, Tromsø], unseen: refuse}
rules:
  cheap or old: spend < 4 or age > 50
  not too late: {check: 'ts < "2026-03-01"', scope: data}
"""


def over(text: str, frame: pd.DataFrame = FRAME, **more: bool) -> tuple[DataContract, tuple[str, ...]]:
    return parse(text).over(frame, "left", time="ts", now=NOW, hidden=("customer",), **more)


def test_a_file_that_states_everything_is_a_contract_and_comes_back_the_same() -> None:
    contract = parse(WHOLE).complete()
    assert contract.columns[0].low == 18.0
    assert contract.columns[3].closed
    assert contract.max_age_s == 7 * 86400
    assert [rule.scope for rule in contract.rules] == ["rows", "data"]
    assert parse(to_yaml(contract)).complete() == contract
    assert DataContract.from_dict(contract.to_dict()) == contract
    assert pickle.loads(pickle.dumps(parse(WHOLE))) == parse(WHOLE)


def test_what_is_written_reads_as_the_same_text_by_any_yaml() -> None:
    import yaml

    contract = learn_contract(FRAME, "left", drop=("customer", "ts"))
    plain = yaml.safe_load(to_yaml(contract))
    assert plain["columns"]["city"]["categories"] == ["Bergen", "Tromsø", "no", "yes"]
    assert plain["classes"] == ["no", "yes"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("contrat: 1", "the contract, line 1: contrat is not known. Did you mean 'contract'?"),
        ("\ncolumns: {a: {kind: numbr}}", "line 2: columns.a.kind: 'numbr' is not known. Did you mean 'number'?"),
        ("columns: {a: {knd: number}}", "columns.a.knd is not known. Did you mean 'kind'?"),
        ("columns:\n  a:\n    categories: [no, b]", "line 3: columns.a.categories[0]: no is read as a truth value"),
        (
            "columns: {on: {kind: number}}",
            'on is read as a truth value, number or time by some: put quotes round it ("on")',
        ),
        ("columns: {a: {categories: [1]}}", "columns.a.categories[0]: '1' is no text: put quotes round it (\"1\")"),
        ("columns: {a: {categories: [2026-01-01]}}", "2026-01-01 is read as a truth value, number or time by some"),
        ("columns: {a: {range: [1:30, 99]}}", "1:30 is read as"),
        ("columns: {a: {range: [010, 99]}}", "010 is read as"),
        ("columns: {a: {range: [9, 1]}}", "columns.a.range: 9 is above 1"),
        ("columns: {a: {range: [1]}}", "columns.a.range must be a list of two"),
        ("columns: {a: {range: [1e999, null]}}", "1e999 is too large a number"),
        (
            "columns: {a: {kind: boolean, range: [0, 1]}}",
            "columns.a.range is for a number or integer, and this is a boolean",
        ),
        ("columns: {a: {nullable: yes}}", "columns.a.nullable: expected true or false, got 'yes'"),
        ("columns: {a: {categories: [b, b]}}", "columns.a.categories holds a text twice"),
        ("label: a\nlabel: b", "line 2: 'label' is there twice in the file: keep one"),
        ("label: &x a\ntask: *x", "anchors and aliases (& and *) are not read"),
        ("label: !!python/object/apply:os.system [ls]", "python/object/apply:os.system' is not read"),
        ("rules: {r: 'a = 1'}", "rule 'r', character 3: '= 1' cannot be read: invalid syntax (equality is ==)"),
        ("max_age: soon", "max_age='soon' is not a duration"),
        ("label: [", "line 1: this is not YAML"),
        ("- 1", "the file must be a mapping of names to values"),
        ("", "the file is empty: `raymlops data contract show NAME` writes a whole one"),
        ("contract: 2", "contract: 1 is the format this raymlops reads, got 2"),
        ("[" * 1500, "this is not YAML"),
    ],
)
def test_files_that_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert sentence in str(caught.value)


def test_a_bomb_of_aliases_is_refused_before_it_goes_off() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    with pytest.raises(ConfigError, match="anchors and aliases"):
        parse("\n".join(lines))


@pytest.mark.parametrize(
    "check",
    [
        "__import__('os')",
        "age.real > 1",
        "(lambda: 1)() > 0",
        "[a for a in age]",
        "age[0] > 1",
        "f'{age}' == 'x'",
        "age ** 9 > 1",
        "age if member else spend",
        "(age := 3) > 1",
        "eval('1') > 0",
        "age > null",
        "age is 1",
        "age in city",
        "abs(age, 1) > 0",
        "1 in [age]",
        "age > 1j",
        "not " * 90 + "member",
        "age > " + "1" * 600,
    ],
)
def test_expressions_hold_nothing_but_what_is_listed(check: str) -> None:
    with pytest.raises(ConfigError, match=r"rule 'r', character \d+: "):
        Rule(name="r", check=check)


@pytest.mark.parametrize(
    ("check", "sentence"),
    [
        ("age > 'x'", "rule 'r', character 7: \"'x'\" is a text and is compared with a number"),
        ("age + 1", "rule 'r', character 1: 'age + 1' is a number, which is neither true nor false"),
        ("age and member", "character 1: 'age' is a number where a boolean is needed"),
        ("length(age) > 1", "character 8: 'age' is a number where a text is needed"),
        ("city + 1 > 2", "character 1: 'city' is a text where a number is needed"),
        ("city in ['a', 1]", "character 15: '1' is a number and is compared with a text"),
    ],
)
def test_rules_that_compare_what_does_not_go_together_are_refused_when_the_contract_is_made(
    check: str, sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(parse(WHOLE).complete(), rules=(Rule(name="r", check=check),))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("check", "broken"),
    [
        ("spend > 2", [0]),  # null is unknown, and what is unknown breaks nothing
        ("spend is not null", [1]),
        ("spend is null or spend > 2", [0]),
        ("not (spend <= 2)", [0]),
        ("30 < age <= 45", [2, 3]),
        ("spend / (age - 31) < 1", []),  # a division by zero is unknown
        ("age % 2 == 1", [2, 3]),
        ("-age < -30", [2]),
        ("abs(age - 40) < 10", [2, 3]),
        ("length(city) > 2", [0]),
        ("city in ['no', \"yes\"]", [1, 3]),
        ("city not in ['no']", [0]),
        ("member == true or age == 45", []),
        ("member", [1]),
        ("column('age') > 30 and (spend > 2 or member)", [2]),
        ("ts < '2026-01-30T02:00:00+00:00'", [2, 3]),
        ("ts - ts == 0", []),
        ("left == 'yes' or age < 50", []),
    ],
)
def test_rules_on_data(check: str, broken: list[int]) -> None:
    text = (
        f"rules: {{r: {{check: {check!r}}}}}"
        if '"' not in check
        else f"rules: {{r: {{check: '{check.replace(chr(39), chr(39) * 2)}'}}}}"
    )
    if not broken:
        over(text)
        return
    with pytest.raises(ContractViolation) as caught:
        over(text)
    (violation,) = caught.value.details["violations"]
    assert (violation["row"], violation["rows"], violation["of"]) == (broken[0], len(broken), 4)


def test_every_violation_says_what_was_expected_what_came_and_in_how_many_rows() -> None:
    frame = FRAME.assign(age=[17, 45, 150, 60], city=["no", "Rome", None, "yes"], left=["yes", "no", "maybe", "no"])
    with pytest.raises(ContractViolation) as caught:
        over(WHOLE.replace("[[customer, ts]]", "[customer]").replace("7d", "1h"), frame)
    assert caught.value.details["failures"] == [
        "column 'age': expected at least 18, got 17 (row 0)",
        "column 'age': expected at most 99, got 150 (row 2)",
        "column 'city': expected no nulls, got null (row 2)",
        "column 'city': expected one of 'no', 'yes', 'Bergen', 'Tromsø', got 'Rome' (row 1)",
        "label 'left': expected one of 'no', 'yes', got 'maybe' (row 2)",
        "unique (customer): expected each key once, got (2) more than once (row 1 and 1 more of 4 rows)",
        "freshness: expected the newest ts at most 1h old, got 2026-01-30T03:00:00, 45h old",
    ]


def test_wrong_types_lost_columns_and_other_columns() -> None:
    with pytest.raises(
        ContractViolation, match="column 'age': expected integer, got 'x' \\(row 0 and 3 more of 4 rows\\)"
    ):
        over(WHOLE, FRAME.assign(age=["x", "y", "z", "w"]))
    with pytest.raises(ContractViolation, match="column 'spend': expected to be there, got no such column"):
        over(WHOLE, FRAME.rename(columns={"spend": "spent"}))
    with pytest.raises(ContractViolation, match="column 'extra': expected only columns of the contract, got one more"):
        over(WHOLE + "others: refuse", FRAME.assign(extra=1))
    contract, _ = over(WHOLE, FRAME.assign(extra=1))
    assert contract.names == ("age", "spend", "member", "city", "extra")  # what is not stated is learned
    with pytest.raises(ContractViolation, match="rule 'r': expected a column 'agee', got none of that name"):
        over("rules: {r: agee > 1}")


def test_times_in_the_future_and_sources_without_time_are_not_fresh() -> None:
    with pytest.raises(ContractViolation, match="freshness: expected no time in the future, got 2026-03-01"):
        over("max_age: 7d", FRAME.assign(ts=pd.Timestamp("2026-03-01")))
    with pytest.raises(ContractViolation, match="freshness: expected a time column, got a source without time="):
        parse("max_age: 7d").over(FRAME.drop(columns="ts"), "left", time=None, now=NOW)


def test_served_rows_are_not_asked_for_keys_or_freshness() -> None:
    served = FRAME.drop(columns=["customer", "ts"]).assign(ts=range(4))
    contract, skipped = over(WHOLE.replace("ts <", "sent <"), served, served=True)
    assert skipped == ("rule 'not too late'", "unique (customer, ts)", "freshness")
    assert contract.names == ("age", "spend", "member", "city")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"age": 17}, "column 'age': expected at least 18, got 17 (row 0)"),
        ({"spend": -1.0}, "column 'spend': expected at least 0, got -1.0 (row 0)"),
        ({"city": "Rome"}, "column 'city': expected one of 'no', 'yes', 'Bergen', 'Tromsø', got 'Rome' (row 0)"),
        ({"spend": 5.0}, "rule 'cheap or old': expected spend < 4 or age > 50, got age = 31, spend = 5.0 (row 0)"),
        ({"age": "x"}, "column 'age': expected integer, got 'x' (row 0)"),
    ],
)
def test_requests_frames_and_tables_are_refused_in_the_same_words(change: dict[str, object], sentence: str) -> None:
    contract = parse(WHOLE).complete()
    row = {**ROW, **change}
    for encode in (contract.encode_rows, lambda rows: contract.encode(pd.DataFrame(rows))):
        np.testing.assert_array_equal(encode([ROW])[0], np.array([31, 1.5, 1, 2], dtype=np.float32))
        with pytest.raises(ContractViolation) as caught:
            encode([row])
        assert caught.value.details["failures"] == [sentence]
    table = pa.Table.from_pylist([row])
    for encoded in (encode_table(contract, table), encode_frame(contract, pd.DataFrame([row]))):
        assert encoded.refused == {0: sentence.removesuffix(" (row 0)")}
        assert np.isnan(encoded.x).all()


def test_text_tables_keep_the_rules_too() -> None:
    contract = parse(WHOLE).complete()
    table = pa.table({"age": ["31", "17"], "spend": ["", "1"], "member": ["true", "false"], "city": ["no", "no"]})
    assert encode_text(contract, table).refused == {1: "column 'age': expected at least 18, got 17.0"}


def test_a_learned_contract_refuses_no_value_for_being_new() -> None:
    contract = learn_contract(FRAME, "left", drop=("customer", "ts"))
    assert not contract.bounded
    assert contract.encode_rows([{**ROW, "age": 900, "city": "Rome"}])[0, 0] == 900
    assert parse(WHOLE).complete().unbounded().encode_rows([{**ROW, "age": 900}])[0, 0] == 900


def test_what_a_contract_leaves_open_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"leaves label, task, classes, columns\.age\.kind, columns\.age\.nullable open"
    ):
        parse("columns: {age: {range: [0, 9]}}").complete()


def test_a_pipeline_reads_its_contract_when_it_is_built(tmp_path: Path) -> None:
    path = tmp_path / "contract.yaml"
    path.write_text(WHOLE)
    source = FrameSource(FRAME, label="left", time="ts", drop=("customer",))
    pipeline = Pipeline(name="churn", source=source, contract=path)
    assert pipeline.declared == parse(WHOLE)
    assert pipeline.hidden == ("customer",)  # checked, and not seen by the model
    assert (
        Pipeline(name="churn", source=source, contract=parse(WHOLE).complete()).declared.complete()
        == parse(WHOLE).complete()
    )
    assert Pipeline(name="churn", source=source).declared == Declared()
    with pytest.raises(ConfigError, match=r"nope\.yaml' cannot be read: No such file"):
        Pipeline(name="churn", source=source, contract="nope.yaml")
    with pytest.raises(ConfigError, match="contract=7 is a int: give a file's path or a DataContract"):
        Pipeline(name="churn", source=source, contract=7)
    with pytest.raises(ConfigError, match="The contract is about the label 'left', the source about 'member'"):
        Pipeline(name="churn", source=FrameSource(FRAME, label="member"), contract=path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read(path)


def test_a_diff_says_what_it_does_to_rows() -> None:
    old = learn_contract(FRAME, "left", drop=("customer", "ts"))
    new = replace(
        parse(WHOLE.replace('classes: ["no", "yes"]', 'classes: ["no", "yes", perhaps]')).complete(), task="multiclass"
    )
    assert [str(change) for change in diff_contracts(old, new)] == [
        "~ task: binary → multiclass  (model)",
        "+ classes: 'perhaps'  (model)",
        "~ column 'age' seen: 22 to 60 → none to none",
        "~ column 'age' range: none to none → 18 to 99  (stricter)",
        "~ column 'spend' seen: 1.5 to 4.5 → none to none",
        "~ column 'spend' range: none to none → 0 to none  (stricter)",
        "~ column 'member' seen: 0 to 1 → none to none",
        "~ column 'city' unseen: missing → refuse  (stricter)",
        "~ column 'city' categories: the same → in another order  (model)",
        "+ unique (customer, ts)  (stricter)",
        "~ max_age: none → 7d  (stricter)",
        "+ rule 'cheap or old': spend < 4 or age > 50  (stricter)",
        "+ rule 'not too late': ts < \"2026-03-01\" (data only)  (stricter)",
    ]
    assert diff_contracts(new, new) == ()
    effects = {change.what: change.effect for change in diff_contracts(new, old)}
    assert effects["column 'age' range"] == effects["max_age"] == "looser"
    fewer = replace(old, columns=old.columns[:1])
    assert [str(c) for c in diff_contracts(old, fewer)][-1] == "- column 'city': category of 4  (model)"


def test_columns_that_the_model_must_not_see_are_known_and_not_checked() -> None:
    frame = pd.DataFrame(
        {"a": [1.0, 2.0, 3.0, 4.0], "who": ["u", "u", "v", "w"], "id": [1, 2, 3, 4], "y": [0, 1, 0, 1]}
    )
    declared = parse("{others: refuse, unique: [id], columns: {a: {range: [0, 9]}}}")
    contract, _ = declared.over(frame, "y", time=None, now=0.0, hidden=("who", "id"))
    assert contract.names == ("a",)
    with pytest.raises(ContractViolation, match="column 'who': expected only columns of the contract, got one more"):
        declared.over(frame, "y", time=None, now=0.0, hidden=("id",))
    with pytest.raises(ContractViolation, match=r"unique \(id\)"):
        declared.over(frame.assign(id=1), "y", time=None, now=0.0, hidden=("who", "id"))
