"""Spark on Ray: files and functions become frames, Ray's workers stay sound, and what hangs or dies is ended."""

from __future__ import annotations

import io
import json
import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial, reduce
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.orc as orc
import pyarrow.parquet as pq
import pytest
import ray

from raymlops.data import ray_write
from raymlops.data.ray_dp import SparkOnRay
from raymlops.data.ray_handoff import hand_over, spark_arrays, spark_dataset
from raymlops.data.ray_pack import pack
from raymlops.data.ray_parity import through_spark
from raymlops.data.ray_prepare import prepare_frame, read_frame
from raymlops.data.ray_read import plain, read_source, with_features
from raymlops.data.ray_write import RowWriter, writer_of
from raymlops.data.schema import learn_contract
from raymlops.data.snapshot import Arrays, order_by_time
from raymlops.data.sources import FileSource, FrameSource, SparkSource
from raymlops.errors import DataError, SparkUnavailable
from raymlops.lake import Lake
from raymlops.loop.held_period import HeldOutModel, count_here, period_work
from raymlops.loop.ray_period import count_with
from raymlops.search.decision import Decision
from raymlops.settings import Settings
from raymlops.sketch.histogram import Bins, Sketch
from raymlops.sketch.profile import SCORE

CSV = "\n".join(
    [
        "when,price,city,flag,sold",
        '2026-01-03,1.5,"Oslo, west",true,yes',
        "2026-01-01,,Bergen,false,no",
        "2026-01-02,2.5,,true,yes",
        '2026-01-02,3.5,"",true,',
        '2026-01-02,4.5,"say ""hi""",false,no',
    ]
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sales.csv").write_text(CSV)
    return tmp_path


@pytest.fixture
def served(folder: Path) -> Iterator[str]:
    """The folder over HTTP: an fsspec URL that Spark cannot read by itself."""
    pd.DataFrame({"n": [1, 2], "d": pd.to_datetime(["2026-01-01", "2026-01-02"]), "y": ["a", "b"]}).to_parquet(
        folder / "two.parquet"
    )

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def jvms() -> set[int]:
    """The JVMs this process started itself."""
    return {child.pid for child in psutil.Process().children() if child.name() == "java"}


def with_half(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(half=frame["n"] / 2, long=frame["s"].str.len() > 3)


class Sums:
    """A model of the user's own; what it says hangs on the order of summing."""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.slope / (1.0 + np.exp(-np.nan_to_num(x.astype(np.float64)) @ np.full(x.shape[1], 0.3)))


def add_ratio(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(twice=frame.price * 2, cheap=frame.price < 2)


def test_a_frame_needs_no_jvm_and_gives_the_same(spark_ready: Settings, folder: Path) -> None:
    given = pd.read_csv(folder / "sales.csv", parse_dates=["when"])
    source, before = FrameSource(pa.Table.from_pandas(given), label="sold", time="when", drop=("flag",)), jvms()
    frame = prepare_frame(source, add_ratio, spark_ready)
    assert frame["sold"].tolist() == ["no", "yes", "no", "yes"]
    assert jvms() == before


def numbers(spark: Any) -> Any:
    columns = ("id", "cast(id as decimal(9,2)) d", "id % 2 y", "timestamp_seconds(id) t")
    return spark.range(0, 3000, 1, 3).selectExpr(*columns)


class TestOneSession:
    """What one Spark session can show."""

    Read = Callable[..., pd.DataFrame]

    @pytest.fixture
    def read(self, session: tuple[SparkOnRay, Any]) -> Read:
        return lambda source, features=None, **more: read_frame(*session, source, features, lambda _: None, **more)

    def test_csv_with_features(self, read: Read, folder: Path) -> None:
        frame = read(FileSource(f"file://{folder}/*.csv", label="sold", time="when", drop=("flag",)), add_ratio)
        assert list(frame.columns) == ["price", "city", "twice", "cheap", "sold", "when"]
        assert frame["sold"].tolist() == ["yes", "no", "yes", None, "no"]
        assert frame["city"].tolist() == ["Oslo, west", "Bergen", None, None, 'say "hi"']
        np.testing.assert_array_equal(frame["twice"], [3.0, np.nan, 5.0, 7.0, 9.0])
        assert frame["cheap"].tolist() == [True, False, False, False, False]
        assert frame["when"].dtype.kind == "M"

    def test_a_spark_function(self, read: Read) -> None:
        frame = read(SparkSource(numbers, label="y", time="t"))
        assert frame["id"].tolist() == list(range(3000))
        assert frame["d"].dtype == np.float64
        assert frame["t"].iloc[1] == pd.Timestamp("1970-01-01 00:00:01")

    @pytest.mark.parametrize(
        ("prepare", "label", "sentence"),
        [
            (numbers, "z", "no label column 'z'"),
            (lambda spark: 5, "y", "prepare returned int: it must return a Spark DataFrame"),
            (lambda spark: spark.sql("select * from nope"), "y", "Spark refused reading the source: .*nope"),
            (lambda spark: 1 / 0, "y", "reading the source failed: ZeroDivisionError"),
            (lambda spark: spark.range(0).selectExpr("id", "id y"), "y", "has no rows"),
        ],
    )
    def test_what_users_get_wrong(self, read: Read, prepare: Any, label: str, sentence: str) -> None:
        with pytest.raises(DataError, match=sentence):
            read(SparkSource(prepare, label=label), lambda frame: frame)

    def test_features_that_fail_late_are_explained(self, read: Read) -> None:
        def late(frame: pd.DataFrame) -> pd.DataFrame:
            if (frame["id"] > 1500).any():
                raise ValueError("too far")
            return frame

        with pytest.raises(DataError, match="The features function failed: ValueError: too far"):
            read(SparkSource(lambda s: numbers(s).drop("t"), label="y"), late)
        with pytest.raises(DataError, match="The features function does not give a row the same everywhere"):
            read(SparkSource(numbers, label="y", time="t"), lambda f: f.assign(m=f.id - f.id.mean()))

    def test_the_plan_the_files_and_the_hidden_columns_come_along(self, read: Read, folder: Path) -> None:
        told: list[tuple[str, list[str]]] = []
        source = FileSource(f"{folder}/sales.csv", label="sold", time="when", drop=("flag", "city"))
        frame = read(source, add_ratio, hidden=("city",), on_plan=lambda plan, files: told.append((plan, files)))
        assert list(frame.columns) == ["price", "twice", "cheap", "sold", "when", "city"]
        ((plan, files),) = told
        assert "== Physical Plan ==" in plan
        assert "FileScan csv" in plan
        assert [name.removeprefix("file://") for name in files] == [f"{folder}/sales.csv"]

    def test_parity_with_spark_among_the_ways(self, session: tuple[SparkOnRay, Any], folder: Path) -> None:
        _, spark = session
        frame = pd.DataFrame(
            {"n": [1, 2, 3, 4], "x": [0.5, np.nan, 1.5, 2.0], "w": ["a", None, "b", "c"], "y": [0, 1, 0, 1]}
        )
        given = FrameSource(frame, label="y")

        def fine(frame: pd.DataFrame) -> pd.DataFrame:
            return frame.assign(s=frame.n + frame.x, big=frame.n > 2, up=frame.w.str.upper())

        report = through_spark(spark, given, fine, 100)
        assert report.text().endswith("all agree")
        assert report.ways == ("whole", "again", "alone", "request", "spark")
        report = through_spark(spark, given, lambda f: f.assign(big=f.n + 2**53), 100)
        assert [(item.column, item.ways) for item in report.differences] == [("big", ("spark",))]
        assert "whole numbers from 2**53 on" in report.differences[0].cause
        zoned = SparkSource(lambda s: numbers(s).drop("d"), label="y")
        aware = through_spark(spark, zoned, lambda f: f.assign(u=pd.to_datetime(f.t).dt.tz_localize("Europe/Oslo")), 5)
        assert "times lose their zone" in "".join(item.cause for item in aware.differences if item.column == "u")
        files = FileSource(f"{folder}/sales.csv", label="sold", time="when", drop=("flag",))
        report = through_spark(spark, files, lambda f: f.assign(c=f.price - f.price.mean()), 100)
        assert [item.column for item in report.differences] == ["c"]
        assert "it uses the other rows" in report.differences[0].cause

    def test_partitions_counted_in_spark_add_up_to_what_the_driver_counts(
        self, session: tuple[SparkOnRay, Any], tmp_path: Path
    ) -> None:
        """Features in Spark, the contract's encoding and the sketch's code in its workers: the reference's own counts, bit for
        bit, though their order and number are Spark's. docs/adr/0023 says why the reference is counted in the driver all the same."""
        rng = np.random.default_rng(3)
        n, city = rng.normal(size=4000), rng.choice(["Oslo", "Bergen", None], 4000)
        n[::7] = np.nan
        given = pd.DataFrame(
            {"n": n, "s": rng.choice(["ab", "abcde"], 4000), "city": city, "y": rng.integers(0, 2, 4000)}
        )
        given.to_parquet(tmp_path / "rows.parquet")
        source = FileSource(str(tmp_path / "rows.parquet"), label="y", engine="spark")
        spark_on_ray, spark = session
        rows, make = with_features(read_source(spark, source), source, with_half)
        assert make is not None
        rows = rows.repartition(2)
        frame = plain(*spark_on_ray.step("handing over", lambda: list(hand_over(rows, str(tmp_path / "parts"), make))))
        contract = learn_contract(frame, "y")
        x = contract.encode(frame)
        sizes = {i: len(column.categories) for i, column in enumerate(contract.columns) if column.kind == "category"}
        bins = Bins.learn(x, contract.names, sizes)

        def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            part = Sketch.empty(bins)
            for batch in make(batches):
                part += Sketch.of(bins, contract.encode(plain(pa.Table.from_batches([batch]))))
            yield pa.RecordBatch.from_pydict({"part": [json.dumps(part.to_dict())]})

        parts = spark_on_ray.step("counting", lambda: rows.mapInArrow(count, "part string").collect())
        sketches = [Sketch.from_dict(json.loads(row["part"])) for row in parts]
        assert sum(part.rows > 0 for part in sketches) > 1
        assert reduce(operator.add, sketches) == Sketch.of(bins, x)
        assert Sketch.of(bins, x).missing.sum() > 500

    def test_a_held_out_period_counted_in_spark_is_what_the_driver_counts(
        self, session: tuple[SparkOnRay, Any], tmp_path: Path
    ) -> None:
        """A snapshot's file in tasks, read, scored by a model of the user's own class and counted: the same package, bit for bit."""
        frame = pd.DataFrame(
            {"n": np.random.default_rng(4).normal(size=60_000), "city": ["Oslo", "Bergen", None] * 20_000}
        )
        frame = frame.assign(y=np.arange(60_000) % 2)
        contract, lake = learn_contract(frame, "y"), Lake(str(tmp_path))
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink, row_group_size=20_000)
        lake.write("key/data.parquet", sink.getvalue())
        x, y = contract.encode(frame), contract.encode_label(frame["y"])
        cuts = (slice(0, 5_000), slice(5_000, 30_000), slice(30_000, None))
        (a, b, c), (d, e, f) = ([side[cut] for cut in cuts] for side in (x, y))
        arrays = Arrays(x_train=a, x_validation=b, x_test=c, y_train=d, y_validation=e, y_test=f, time_test=None)
        model = HeldOutModel(
            before=Sums(1.0), after=Sums(2.0), decision=Decision(), validation=25_000, multiclass=False
        )
        snapshot = SimpleNamespace(key="key", contract=contract, split=SimpleNamespace(train=5_000))
        work = period_work(lake, snapshot, arrays, model)
        assert work is not None
        assert len(work.tasks()) == 3
        counted = work.plan.profile(count_with(*session, work), ordered=True)
        assert counted.to_bytes() == work.plan.profile(count_here(work, arrays), ordered=True).to_bytes()
        assert (counted.sketch.rows, counted.bins.columns[-1]) == (55_000, SCORE)

    def test_remote_files_are_read_in_spark_tasks(self, read: Read, served: str) -> None:
        frame = read(FileSource(f"{served}/two.parquet", label="y", time="d"))
        assert frame["n"].tolist() == [1, 2]
        assert frame["d"].tolist() == [pd.Timestamp("2026-01-01"), pd.Timestamp("2026-01-02")]
        frame = read(FileSource(f"{served}/sales.csv", label="sold", time="when"))
        assert frame["city"].tolist() == ["Oslo, west", "Bergen", None, None, 'say "hi"']

    def test_names_that_look_like_globs_and_parquet_with_nulls(self, read: Read, tmp_path: Path) -> None:
        given = pd.DataFrame({"n": [1, None, 3], "b": [True, None, False], "y": ["a", "b", "a"]})
        given.to_parquet(tmp_path / "part-{0}.parquet")
        frame = read(FileSource(str(tmp_path), label="y"))
        assert frame["y"].tolist() == ["a", "b", "a"]
        assert frame.isna().sum().tolist() == [1, 1, 0]

    @pytest.mark.parametrize("form", ["csv", "json", "orc", "parquet"])
    def test_small_files_give_the_same_without_spark(
        self, read: Read, spark_ready: Settings, tmp_path: Path, form: str
    ) -> None:
        rows = [
            {"n": 3, "f": 1.5, "b": True, "at": "2026-01-03 10:00:00", "s": 'a, "b"', "e": None, "y": "k"},
            {"n": -1, "f": None, "b": False, "at": "2026-01-01 11:30:00", "s": None, "e": None, "y": "m"},
            {"n": 2, "f": 2.0, "b": True, "at": "2026-01-02 00:00:00", "s": "é ☃", "e": None, "y": "k"},
        ]
        frame = pd.DataFrame(rows)
        for number, part in enumerate((frame.iloc[:2], frame.iloc[2:])):
            path = tmp_path / f"part-{number}.{form}"
            if form == "csv":
                part.to_csv(path, index=False)
            elif form == "json":
                part.to_json(path, orient="records", lines=True)
            else:
                times = part.assign(at=pd.to_datetime(part["at"]), e=part["e"].astype("string"))
                table = pa.Table.from_pandas(times.astype({"n": "int32"}), preserve_index=False)
                orc.write_table(table, str(path)) if form == "orc" else pq.write_table(table, path)
        source = FileSource(str(tmp_path), label="y", time="at", drop=("e",))
        by_spark = order_by_time(read(source, with_half), "at")
        alone = prepare_frame(replace(source, engine="arrow"), with_half, spark_ready)
        pd.testing.assert_frame_equal(alone, by_spark)
        assert alone["n"].tolist() == [-1, 2, 3]

    def test_arrays_of_one_dictionary_and_texts_that_stay(self, session: tuple[SparkOnRay, Any]) -> None:
        spark_on_ray, spark = session
        columns = (
            "cast(id as float) f",
            "concat('k', cast(id div 500 as string)) k",
            "uuid() u",
            "timestamp_seconds(id) t",
            "id % 2 y",
        )
        frame = spark.range(0, 3000, 1, 6).selectExpr(*columns)
        folder = spark_on_ray.folder()
        made = spark_arrays(frame, folder, label="y", texts=("u",))
        assert made.names == ("f", "k")
        np.testing.assert_array_equal(made.x[:, 0], np.arange(3000, dtype=np.float32))
        np.testing.assert_array_equal(made.x[:, 1], np.arange(3000) // 500)  # each partition has a text of its own
        assert made.categories["k"] == tuple(f"k{i}" for i in range(6))
        assert made.label is not None
        np.testing.assert_array_equal(made.label, np.arange(3000) % 2)
        np.testing.assert_array_equal(made.times["t"].astype("int64"), np.arange(3000) * 10**6)
        assert len(set(made.texts["u"].to_pylist())) == 3000
        assert not Path(folder).exists()

    def test_numbers_that_stay_what_they_are_are_not_packed(self, session: tuple[SparkOnRay, Any]) -> None:
        spark_on_ray, spark = session
        frame = spark.range(0, 50, 1, 2).selectExpr("id order", "id + 1 customer", "id + 2 basket", "id % 2 y")
        made = spark_arrays(frame, spark_on_ray.folder(), label="y", texts=("order", "customer", "basket"))
        assert made.x.shape == (50, 0)
        assert {name: text.to_pylist()[:2] for name, text in made.texts.items()} == {
            "order": [0, 1],
            "customer": [1, 2],
            "basket": [2, 3],
        }

    def test_workers_know_their_node(self, session: tuple[SparkOnRay, Any]) -> None:
        """Partitions of other nodes are fetched from the node that their writers name."""
        _, spark = session

        def told(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            from raymlops.data.handed import ray_node

            for _ in batches:
                yield pa.RecordBatch.from_pydict({"node": [ray_node()]})

        assert {row.node for row in spark.range(2).mapInArrow(told, "node string").collect()} == {
            ray.get_runtime_context().get_node_id()
        }

    def test_packed_columns_hold_what_plain_ones_do(self, session: tuple[SparkOnRay, Any]) -> None:
        """The bytes in Spark's rows, of every type and with nulls, against Spark's own conversion; with a column of bytes they go
        through the Python workers."""
        spark_on_ray, spark = session
        kinds = ("float", "double", "int", "bigint")
        columns = [
            f"cast(if((id + {i}) % 7 = 0, null, (id - 150) * {i + 1} div 4) as {kind}) as `{kind} .{i}`"
            for kind in kinds
            for i in range(66 if kind == "float" else 3)
        ]
        others = ["if(id % 3 = 0, null, repeat('é', id % 9)) s", "date_from_unix_date(id) d", "timestamp_seconds(id) t"]
        others += [
            "if(id % 5 = 0, null, timestamp_ntz '2026-03-29 02:30:00') l",
            "cast(id as smallint) h",
            "float('nan') n",
        ]
        frame = spark.range(0, 300, 1, 3).selectExpr("id % 2 = 0 b", *columns, *others, "cast(id % 7 as tinyint) y")
        assert [len(item.columns) for item in pack(frame)[1]] == [67, 3, 3, 3]
        expected = plain(pa.Table.from_batches(frame._collect_as_arrow()))
        for given in (frame, frame.withColumn("raw", frame["s"].cast("binary"))):
            assert isinstance(writer_of(given), RowWriter) == (given is frame)
            found = plain(*hand_over(given, spark_on_ray.folder()))
            pd.testing.assert_frame_equal(found[expected.columns], expected)
        assert found["raw"].dropna().map(bytes.decode).tolist() == expected["s"].dropna().tolist()
        sorted_ = frame.orderBy(frame["t"].desc()).groupBy("t").agg({f"`float .{i}`": "max" for i in range(3)})
        assert len(plain(*hand_over(sorted_, spark_on_ray.folder()))) == 300
        twice = frame.select("s", frame["s"].alias("S"), *[frame[f"`int .{i}`"] for i in range(3)])
        assert pack(twice)[1] == ()
        found = plain(*hand_over(twice, spark_on_ray.folder()))
        assert list(found.columns) == ["s", "S", "int .0", "int .1", "int .2"]
        assert found["s"].tolist() == found["S"].tolist()
        with pytest.raises(DataError, match="More than one column is called 's'"):
            list(hand_over(frame.select("s", "s"), spark_on_ray.folder()))

    def test_an_empty_partition_is_none_and_a_lost_one_is_an_error(
        self, session: tuple[SparkOnRay, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Spark writes no file for an empty partition; a file that is gone with its node looks the same."""
        spark_on_ray, spark = session
        frame = spark.range(0, 6000, 1, 6).where("id < 500 or id between 2500 and 3500")
        found = plain(*hand_over(frame, spark_on_ray.folder()))
        assert found["id"].tolist() == [*range(500), *range(2500, 3501)]
        listed, modes = ray_write.listed, set()

        def without_one(folder: str) -> list[tuple[str, int]]:
            files = listed(folder)
            for name, _ in files:
                with suppress(FileNotFoundError):  # it has been read meanwhile
                    modes.add((Path(folder) / name).stat().st_mode & 0o777)
            return [item for item in files if not item[0].startswith("part-00002")]

        monkeypatch.setattr(ray_write, "listed", without_one)
        with pytest.raises(
            SparkUnavailable, match="Partition 2 was written and is nowhere: a node went with its files"
        ):
            list(hand_over(frame, spark_on_ray.folder()))

    def test_a_stream_for_ray_train_by_a_contract(self, session: tuple[SparkOnRay, Any]) -> None:
        spark_on_ray, spark = session
        columns = ("cast(id as float) f", "if(id % 3 = 0, 'a', 'b') k", "if(id % 2 = 0, 'no', 'yes') y")
        frame = spark.range(0, 3000, 1, 5).selectExpr(*columns)
        seen = pd.DataFrame({"f": [0.5, 1.5], "k": ["a", "b"], "y": ["no", "yes"]})
        contract = learn_contract(seen, "y")
        with spark_dataset(frame, spark_on_ray.folder(), contract) as dataset:
            rows = dataset.to_pandas().sort_values("f", ignore_index=True)
        assert rows["f"].tolist() == list(range(3000))
        assert rows["k"].tolist() == [float(i % 3 != 0) for i in range(3000)]
        assert rows["y"].tolist() == [float(i % 2) for i in range(3000)]
        with spark_dataset(frame.where("f < 10"), spark_on_ray.folder()) as dataset:
            assert sorted(dataset.to_pandas()["k"]) == ["a"] * 4 + ["b"] * 6

    def test_a_cast_that_fails_is_an_error_and_no_null(self, read: Read) -> None:
        with pytest.raises(DataError, match=r"CAST_INVALID_INPUT.*'twelve'"):
            read(
                SparkSource(
                    lambda s: s.sql("select cast(a as int) n, 1 y from values ('1'), ('twelve') t(a)"), label="y"
                )
            )

    def test_no_rows_keep_their_columns(self, read: Read) -> None:
        frame = read(SparkSource(lambda s: numbers(s).where("id < 0"), label="y", time="t"))
        assert list(frame.columns) == ["id", "d", "y", "t"]
        assert frame.empty

    def test_a_second_session_is_refused(self, read: Read, spark_ready: Settings) -> None:
        second = SparkOnRay(spark_ready)
        with pytest.raises(SparkUnavailable, match="A Spark session is active in this process already"):
            second.__enter__()


def test_a_step_past_its_deadline_is_ended(shared_spark: Any) -> None:
    spark_on_ray, spark = shared_spark.session()
    stop = threading.Event()
    assert spark.range(5).count() == 5
    with pytest.raises(SparkUnavailable, match=r"Spark did not finish waiting within 0\.2 s and was ended"):
        spark_on_ray.step("waiting", stop.wait, 0.2)
    shared_spark.end()
    stop.set()
    assert not jvms()
