"""The house rules that a machine can hold: import directions, file sizes, packaging."""

import ast
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("store", "ingest", "query", "kernels")
MAY_IMPORT = {
    "store": {"store", "errors", "names"},
    "kernels": {"kernels", "errors", "names"},
    "ingest": {"ingest", "store", "kernels", "errors", "names"},
    "query": {"query", "store", "kernels", "errors", "names"},
}
FORBIDDEN = {
    "store": {"torch", "duckdb", "transformers"},
    "kernels": {"pyarrow", "zarr", "deltalake", "duckdb", "transformers"},
    "ingest": {"duckdb"},
    "query": {"torch", "transformers"},
}
SOURCES = sorted(
    p for room in ROOMS for p in (ROOT / room).glob("*.py")
) + sorted((ROOT / "src" / "scopelake").glob("*.py"))  # fmt: skip


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room):
    for path in (ROOT / room).glob("*.py"):
        for name in imported(path):
            parts = name.split(".")
            assert parts[0] not in ROOMS, f"{path}: {name} without scopelake"
            assert parts[0] not in FORBIDDEN[room], f"{path}: {name}"
            if parts[0] == "scopelake" and len(parts) > 1:
                assert parts[1] in MAY_IMPORT[room], f"{path}: {name}"


def test_no_file_is_longer_than_400_lines():
    folders = [ROOT / r for r in (*ROOMS, "src/scopelake", "tests", "benchmarks", "examples")]
    for folder in folders:
        for path in folder.rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, path


def test_the_package_list_names_every_room():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(config["packages"]) == {
        "scopelake",
        "scopelake.cli",
        *(f"scopelake.{r}" for r in ROOMS),
    }
    for room in ROOMS:
        assert config["package-dir"][f"scopelake.{room}"] == room
        assert (ROOT / "src" / "scopelake" / room).resolve() == ROOT / room


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_no_top_level_packages(room):
    spec = importlib.util.find_spec(room)
    assert spec is None or ROOT not in Path(str(spec.origin)).parents


def test_importing_the_front_door_loads_nothing_heavy():
    code = (
        "import sys, scopelake\n"
        "heavy = {'torch', 'duckdb', 'transformers', 'pyarrow', 'zarr', 'deltalake'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert scopelake.__all__ == sorted(scopelake.__all__)\n"
        "assert all(hasattr(scopelake, name) for name in scopelake.__all__)\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd="/")


@pytest.mark.slow
def test_the_wheel_holds_every_package_and_the_tiny_model(tmp_path):
    import zipfile

    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
         "-w", str(tmp_path), str(ROOT)], check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in SOURCES:
        inside = path.relative_to(ROOT / "src" if "src" in path.parts else ROOT).as_posix()
        inside = inside if inside.startswith("scopelake/") else f"scopelake/{inside}"
        assert inside in names
    for module in ("kernels/_native", "kernels/_screen", "store/_native", "store/_statistics"):
        assert any(name.startswith(f"scopelake/{module}.") for name in names)
    data = ROOT / "src" / "scopelake" / "data"
    for path in (p for p in data.rglob("*") if p.is_file()):
        assert path.relative_to(ROOT / "src").as_posix() in names
    assert sum(p.stat().st_size for p in data.rglob("*") if p.is_file()) <= 16 * 2**20
