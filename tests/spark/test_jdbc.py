"""A table over JDBC in ranges: Derby, whose driver comes with Spark, in memory, so in one JVM that is driver and executor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from raymlops.data.ray_java import java_environment
from raymlops.settings import Settings

SCRIPT = """
import json
from pyspark.sql import SparkSession
from raymlops.data.ray_read import read_source
from raymlops.data.sql import SQLSource

short_lived = {"spark.ui.enabled": "false", "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}
spark = SparkSession.builder.master("local[1]").config(map=short_lived).getOrCreate()
url, driver = "jdbc:derby:memory:sales;create=true", "org.apache.derby.jdbc.EmbeddedDriver"
made = spark.range(0, 90, 1, 1).selectExpr("id", "id * 0.5d AS price", "id % 2 AS y")
made.write.format("jdbc").options(url=url, driver=driver, dbtable="sales").save()
found = {}
for name, source in {
    "table": SQLSource(url, table="sales", label="y", driver=driver, partition="id", partitions=3),
    "query": SQLSource(url, query='SELECT "id", "y" FROM sales WHERE "id" >= 80;', label="y", driver=driver),
}.items():
    frame = read_source(spark, source)
    rows = frame.toPandas()
    found[name] = [frame.rdd.getNumPartitions(), sorted(rows[rows.columns[0]].tolist())]
print(json.dumps(found))
"""


def test_a_table_and_a_query_of_derby(settings: Settings, tmp_path: Path) -> None:
    environment = {**os.environ, **java_environment(settings), "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,  # Derby writes a log where it is started
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"table": [3, list(range(90))], "query": [1, list(range(80, 90))]}
