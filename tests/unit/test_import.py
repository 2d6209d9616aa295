"""Importing raymlops does nothing: it starts nothing, imports no engine, and the public names all exist."""

import subprocess
import sys

ENGINES = ("ray", "pyspark", "raydp", "mlflow", "alibi_detect", "sklearn", "xgboost", "onnxruntime")


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_loads_no_engine() -> None:
    loaded = _run(f"import raymlops, sys; print([name for name in {ENGINES!r} if name in sys.modules])")
    assert loaded == "[]"


def test_specs_load_no_engine() -> None:
    code = (
        "import raymlops, sys\n"
        "raymlops.Gate(), raymlops.Canary(), raymlops.Monitor(), raymlops.RetrainPolicy(), raymlops.Search()\n"
        f"print([name for name in {ENGINES!r} if name in sys.modules])"
    )
    assert _run(code) == "[]"


def test_every_public_name_exists() -> None:
    names = _run("import raymlops; print(all(getattr(raymlops, name) is not None for name in raymlops.__all__))")
    assert names == "True"


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert _run("import raymlops; print(hasattr(raymlops, 'Pipelin'))") == "False"
