"""Tables with one known fault each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from raymlops.data.assess.spec import Assess
from raymlops.testing.tables import (
    NOW,
    Case,
    Generator,
    hourly,
    imbalanced,
    mixed,
    multiclass,
    numeric,
    ordered,
    regression,
)

Fault = Callable[[Generator], Case]
FAULTS: dict[str, Fault] = {}


def _fault(make: Fault) -> Fault:
    FAULTS[make.__name__] = make
    return make


def _some(rng: Generator, rows: int, share: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which rows are hit: about ``share`` of them, at least three."""
    hit = np.zeros(rows, dtype=bool)
    hit[rng.permutation(rows)[: max(3, round(share * rows))]] = True
    return hit


# --- rows and label -------------------------------------------------------------------------------------


@_fault
def no_rows(rng: Generator) -> Case:
    return Case(frame=mixed(rng).head(0), task="binary", check="rows")


@_fault
def one_row(rng: Generator) -> Case:
    return Case(frame=mixed(rng).head(1), task="binary", check="rows")


@_fault
def few_rows(rng: Generator) -> Case:
    return Case(frame=mixed(rng, 120), check="rows")


@_fault
def one_class(rng: Generator) -> Case:
    return Case(frame=mixed(rng).assign(y=1), task="binary", check="classes")


@_fault
def rare_class(rng: Generator) -> Case:
    frame = mixed(rng)
    return Case(frame=frame.assign(y=_some(rng, len(frame), 0.002).astype(int)), check="classes")


@_fault
def imbalance(rng: Generator) -> Case:
    frame = imbalanced(rng, 20_000)
    rare = frame.index[frame.y == 1][60:]
    return Case(frame=frame.drop(index=rare).reset_index(drop=True), check="imbalance")


@_fault
def class_spelt_twice(rng: Generator) -> Case:
    frame = multiclass(rng)
    return Case(frame=frame.assign(y=frame.y.where(rng.random(len(frame)) < 0.8, frame.y + " ")), check="classes")


@_fault
def label_missing(rng: Generator) -> Case:
    frame = mixed(rng)
    return Case(frame=frame.assign(y=frame.y.where(~_some(rng, len(frame), 0.01))), task="binary", check="label")


@_fault
def label_infinite(rng: Generator) -> Case:
    frame = regression(rng)
    return Case(frame=frame.assign(y=frame.y.where(~_some(rng, len(frame), 0.001), np.inf)), check="label")


# --- columns --------------------------------------------------------------------------------------------


@_fault
def empty_column(rng: Generator) -> Case:
    return Case(frame=mixed(rng).assign(note=np.nan), check="missing:note")


@_fault
def mostly_missing(rng: Generator) -> Case:
    frame = mixed(rng)
    return Case(frame=frame.assign(rating=frame.rating.where(_some(rng, len(frame), 0.25))), check="missing:rating")


@_fault
def constant_column(rng: Generator) -> Case:
    return Case(frame=mixed(rng).assign(currency="NOK"), check="constant")


@_fault
def one_key_99_percent(rng: Generator) -> Case:
    frame = mixed(rng)
    shop = np.where(_some(rng, len(frame), 0.008), rng.choice(["b", "c", "d"], len(frame)), "unknown")
    return Case(frame=frame.assign(shop=shop), check="near_constant:shop")


@_fault
def skewed_key(rng: Generator) -> Case:
    frame = mixed(rng)
    customer = np.where(_some(rng, len(frame), 0.01), rng.integers(1, 900, len(frame)), 0)
    return Case(frame=frame.assign(customer=customer), check="skewed_key:customer", spec=Assess(key="customer"))


@_fault
def infinities(rng: Generator) -> Case:
    frame = mixed(rng)
    hit = _some(rng, len(frame), 0.002)
    return Case(
        frame=frame.assign(price=frame.price.where(~hit, np.where(rng.random(len(frame)) < 0.5, np.inf, -np.inf))),
        check="infinite:price",
    )


@_fault
def enormous(rng: Generator) -> Case:
    frame = mixed(rng)
    return Case(frame=frame.assign(price=frame.price.where(~_some(rng, len(frame), 0.002), 1e308)), check="huge:price")


@_fault
def slipped_unit(rng: Generator) -> Case:
    frame = regression(rng)
    hit = _some(rng, len(frame), 0.003)
    return Case(frame=frame.assign(size=frame["size"] * np.where(hit, 10_000, 1)), check="outliers:size")


@_fault
def code_for_missing(rng: Generator) -> Case:
    frame = mixed(rng)
    return Case(frame=frame.assign(rating=frame.rating.fillna(-999.0)), check="sentinel:rating")


@_fault
def negative_durations(rng: Generator) -> Case:
    frame = mixed(rng)
    minutes = rng.gamma(2.0, 30.0, len(frame)).round(1)
    hit = _some(rng, len(frame), 0.01)
    return Case(
        frame=frame.assign(duration_minutes=np.where(hit, -minutes, minutes)), check="negative:duration_minutes"
    )


@_fault
def end_before_start(rng: Generator) -> Case:
    frame = ordered(rng)
    took = pd.to_timedelta(rng.gamma(2.0, 900.0, len(frame)).round() + 1, unit="s")
    end = frame["at"] - pd.Timedelta("1d") + took.where(~_some(rng, len(frame), 0.01), -took)
    return Case(
        frame=frame.assign(trip_start=frame["at"] - pd.Timedelta("1d"), trip_end=end),
        time="at",
        check="negative:trip_end",
    )


@_fault
def mixed_types(rng: Generator) -> Case:
    frame = mixed(rng)
    hit = _some(rng, len(frame), 0.01)
    price = frame.price.astype(object).where(~hit, "n/a")
    return Case(frame=frame.assign(price=price), check="mixed_types:price")


@_fault
def numbers_as_text(rng: Generator) -> Case:
    frame = mixed(rng, 1500)
    price = frame.price.round().astype(int).astype(str).where(~_some(rng, len(frame), 0.01), "unknown")
    return Case(frame=frame.assign(price=price), check="numbers_as_text:price")


@_fault
def wrong_encoding(rng: Generator) -> Case:
    frame = mixed(rng)
    misread = frame.city.map(lambda value: value.encode("utf-8").decode("cp1252"))
    return Case(frame=frame.assign(city=misread), check="encoding:city")


@_fault
def spelt_in_several_ways(rng: Generator) -> Case:
    frame = mixed(rng)
    other = frame.city.where(rng.random(len(frame)) < 0.5, frame.city.str.upper() + " ")
    return Case(frame=frame.assign(city=frame.city.where(~_some(rng, len(frame), 0.1), other)), check="spelling:city")


@_fault
def category_explosion(rng: Generator) -> Case:
    frame = mixed(rng)
    words = [f"item {number}" for number in rng.integers(0, 2500, len(frame))]
    return Case(frame=frame.assign(item=words), check="categories:item")


@_fault
def identifier(rng: Generator) -> Case:
    frame = mixed(rng)
    return Case(frame=frame.assign(order_id=rng.permutation(len(frame)) + 700_000), check="identifier:order_id")


@_fault
def more_columns_than_rows_can_tell(rng: Generator) -> Case:
    frame = mixed(rng, 500)
    more = pd.DataFrame(rng.normal(size=(500, 200)), columns=[f"gene_{i}" for i in range(200)])
    return Case(frame=pd.concat([more, frame], axis=1), check="columns")


# --- repeats --------------------------------------------------------------------------------------------


@_fault
def duplicated_rows(rng: Generator) -> Case:
    frame = mixed(rng)
    return Case(
        frame=pd.concat([frame, frame.sample(frac=0.3, random_state=int(rng.integers(99)))], ignore_index=True),
        check="duplicate_rows",
    )


@_fault
def test_rows_in_train(rng: Generator) -> Case:
    """The newest tenth are old rows, loaded again with a new time."""
    frame = ordered(rng)
    again = frame.sample(frac=0.12, random_state=int(rng.integers(99))).assign(
        at=lambda part: frame["at"].max() + pd.to_timedelta(np.arange(len(part)), unit="min")
    )
    return Case(frame=pd.concat([frame, again], ignore_index=True), time="at", check="overlap")


@_fault
def duplicated_ids(rng: Generator) -> Case:
    frame = mixed(rng)
    numbers = rng.permutation(10 * len(frame))[: len(frame)]
    numbers[_some(rng, len(frame), 0.01)] = numbers[0]
    return Case(frame=frame.assign(order_id=numbers), check="duplicate_ids:order_id")


@_fault
def duplicated_column(rng: Generator) -> Case:
    frame = mixed(rng)
    return Case(frame=frame.assign(net_price=frame.price), check="duplicate_columns")


# --- leaks ----------------------------------------------------------------------------------------------


@_fault
def label_copied(rng: Generator) -> Case:
    frame = mixed(rng)
    return Case(frame=frame.assign(refunded=frame.y.map({0: "no", 1: "yes"})), check="leak:refunded")


@_fault
def label_in_other_units(rng: Generator) -> Case:
    frame = regression(rng)
    return Case(frame=frame.assign(log_tax=np.log1p(0.02 * frame.y)), check="leak:log_tax")


@_fault
def label_in_parts(rng: Generator) -> Case:
    frame = regression(rng)
    land = (frame.y * rng.uniform(0.2, 0.6, len(frame))).round()
    return Case(frame=frame.assign(land=land, building=frame.y - land), check="disguise")


@_fault
def known_only_later(rng: Generator) -> Case:
    """A time that lies after the row's own, and so was not known then."""
    frame = ordered(rng)
    closed = frame["at"] + pd.to_timedelta(rng.gamma(2.0, 86_400.0, len(frame)), unit="s")
    return Case(frame=frame.assign(case_closed_at=closed), time="at", check="time_travel:case_closed_at")


@_fault
def filled_after_the_outcome(rng: Generator) -> Case:
    """A flag that is set weeks after the outcome: the newest rows do not have it yet."""
    frame = ordered(rng)
    told = np.where(rng.random(len(frame)) < 0.93, frame.y, 1 - frame.y)
    recent = frame["at"] > frame["at"].quantile(0.75)
    return Case(frame=frame.assign(calls=np.where(recent, 0, told)), time="at", check="collapse:calls")


# --- time -----------------------------------------------------------------------------------------------


@_fault
def dates_in_the_future(rng: Generator) -> Case:
    frame = ordered(rng)
    hit = _some(rng, len(frame), 0.002)
    ahead = pd.Timestamp(NOW, unit="s") + pd.to_timedelta(rng.integers(1, 300, len(frame)), unit="D")
    return Case(frame=frame.assign(at=frame["at"].where(~hit, pd.Series(ahead))), time="at", check="future:at")


@_fault
def clock_changes(rng: Generator) -> Case:
    frame = hourly(rng)
    local = frame["at"].dt.tz_localize("UTC").dt.tz_convert("Europe/Oslo").dt.tz_localize(None)
    return Case(frame=frame.assign(at=local), time="at", check="timezone:at")


@_fault
def mixed_offsets(rng: Generator) -> Case:
    frame = ordered(rng)
    text = frame["at"].dt.strftime("%Y-%m-%dT%H:%M:%S")
    return Case(
        frame=frame.assign(at=text + np.where(rng.random(len(frame)) < 0.5, "+00:00", "+01:00")),
        time="at",
        check="timezone:at",
    )


@_fault
def month_missing(rng: Generator) -> Case:
    frame = ordered(rng)
    lost = frame["at"].between("2025-11-10", "2025-12-10")
    return Case(frame=frame[~lost].reset_index(drop=True), time="at", check="gaps")


@_fault
def stale(rng: Generator) -> Case:
    frame = ordered(rng)
    return Case(
        frame=frame.assign(at=frame["at"] - pd.Timedelta("90d")),
        time="at",
        check="freshness",
        spec=Assess(max_age="7d"),
    )


@_fault
def unit_changed(rng: Generator) -> Case:
    frame = ordered(rng)
    return Case(
        frame=frame.assign(price=frame.price * np.where(frame["at"] > "2026-01-15", 0.09, 1.0)),
        time="at",
        check="stability:price",
    )


@_fault
def label_counted_otherwise(rng: Generator) -> Case:
    frame = ordered(rng)
    late = (frame["at"] > "2026-01-15") & (rng.random(len(frame)) < 0.7)
    return Case(frame=frame.assign(y=frame.y.where(~late, 0)), time="at", check="label_stability")


@_fault
def no_longer_filled_in(rng: Generator) -> Case:
    frame = ordered(rng)
    return Case(
        frame=frame.assign(rating=frame.rating.where(frame["at"] < "2026-01-20")), time="at", check="filling:rating"
    )


# --- what can be learnt ---------------------------------------------------------------------------------


@_fault
def nothing_to_learn(rng: Generator) -> Case:
    frame = mixed(rng, 20_000)
    return Case(frame=frame.assign(y=rng.permutation(frame.y)), check="predictive")


@_fault
def mostly_unrelated(rng: Generator) -> Case:
    frame = numeric(rng, 3000, 8)
    noise = pd.DataFrame(rng.normal(size=(3000, 12)), columns=[f"noise_{i}" for i in range(12)])
    return Case(frame=pd.concat([noise, frame], axis=1), check="unrelated")


@_fault
def more_rows_would_help(rng: Generator) -> Case:
    x = rng.normal(size=(1500, 20))
    y = ((x[:, :10] * x[:, 10:]).sum(axis=1) + rng.normal(0, 0.5, 1500) > 0).astype(int)
    return Case(frame=pd.DataFrame(x, columns=[f"x{i}" for i in range(20)]).assign(y=y), check="enough_rows")


@_fault
def slices_too_small(rng: Generator) -> Case:
    frame = mixed(rng)
    country = np.where(_some(rng, len(frame), 0.02), rng.choice(["IS", "FO"], len(frame)), "NO")
    return Case(frame=frame.assign(country=country), check="slices:country", spec=Assess(slices=("country",)))


def cases(seed: int) -> Mapping[str, Case]:
    """Every faulty table, each from its own stream of this seed."""
    return {name: make(np.random.default_rng((seed, number))) for number, (name, make) in enumerate(FAULTS.items())}
