"""An endpoint that says whether the price of electricity is about to rise, and looks after itself.

    python examples/electricity.py
    raymlops run examples/electricity.py:pipeline
    ray job submit --working-dir . -- python examples/electricity.py

It makes a small market of its own, so it runs anywhere; put your table in ``prepare`` and your columns in ``features``.
"""

from raymlops import Canary, Gate, Monitor, Pipeline, RetrainPolicy, Search, SparkSource, candidates


def prepare(spark):
    """Half-hours of a market: Spark makes them here; in real life this joins and aggregates tables of the lake."""
    from pyspark.sql import functions as f

    half_hours = spark.range(6_000, numPartitions=2)
    hour = (f.col("id") % 48) / 2
    demand = 0.5 + 0.3 * f.sin((hour - 6) / 24 * 6.2832) + 0.08 * f.randn(seed=1)
    rows = half_hours.select(
        f.timestamp_seconds(f.lit(1_767_225_600) + f.col("id") * 1800).alias("at"),
        hour.alias("hour"),
        demand.alias("demand"),
        (0.4 + 0.2 * f.rand(seed=2)).alias("transfer"),
        f.when(f.col("id") % 336 < 240, "workday").otherwise("weekend").alias("day"),
    )
    pressure = (f.col("demand") - f.col("transfer")) * 6 + f.when(f.col("day") == "weekend", -0.8).otherwise(0.2)
    return rows.withColumn("rises", (f.rand(seed=3) < 1 / (1 + f.exp(-pressure))).cast("int"))


def features(frame):
    """pandas in, pandas out; Spark runs it to train, the server runs it to serve."""
    return frame.assign(demand_per_transfer=frame.demand / frame.transfer.clip(lower=0.01))


pipeline = Pipeline(
    name="electricity",
    source=SparkSource(prepare, label="rises", time="at"),
    features=features,
    search=Search(candidates=[candidates.xgboost(), candidates.linear()], metric="roc_auc", trials=8),
    gate=Gate(min_score=0.6),
    rollout=Canary(weights=(0.1, 0.5, 1.0), hold_s="5s", min_requests=100),
    monitor=Monitor(window_rows=1000),
    retrain=RetrainPolicy(every="7d", cooldown="1h", max_per_day=4),
)

if __name__ == "__main__":
    endpoint = pipeline.run()
    row = {"hour": 17.5, "demand": 0.7, "transfer": 0.45, "day": "workday"}
    answer = endpoint.predict([row])
    print(
        f"{endpoint.url}: version {answer['version']} says {answer['predictions']} with probability {answer['probabilities']}"
    )
