# SPDX-License-Identifier: Apache-2.0
"""The package as others get it: wheel, source archive, editable install, layout."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("rtl", "sim", "gen", "fpga", "asic")


def run(*command: str | Path, cwd: Path | None = None) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel and source archive, built from a copy so that the checkout stays clean."""
    import shutil

    tree = tmp_path_factory.mktemp("tree") / "atriplex"
    left_out = shutil.ignore_patterns(".*", "out", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=left_out)
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", out, tree)
    return out


def test_packages_are_those_of_the_tree() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = sorted(
        "atriplex." + ".".join(path.parent.relative_to(ROOT).parts)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
    )
    assert sorted(listed) == there


@pytest.mark.parametrize(
    ("folder", "others"),
    [("rtl", {"sim", "gen", "fpga", "asic"}), ("sim", {"gen", "fpga", "asic"})],
)
def test_folders_import_only_what_they_stand_on(folder: str, others: set[str]) -> None:
    found = []
    for path in (ROOT / folder).rglob("*.py"):
        package = ("atriplex", *path.parent.relative_to(ROOT).parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) + 1 - node.level] if node.level else ()
                stem = ".".join((*above, *filter(None, [node.module])))
                names = [f"{stem}.{alias.name}" for alias in node.names]
            else:
                continue
            found += [
                (str(path.relative_to(ROOT)), name)
                for name in names
                if name.startswith("atriplex.") and name.split(".")[1] in others
            ]
    assert found == []


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_archive_installs_and_lists_blocks_in_a_fresh_environment(
    kind: str, archives: Path, tmp_path: Path
) -> None:
    (archive,) = archives.glob(kind)
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", archive)
    listed = json.loads(run(tmp_path / "env" / "bin" / "atriplex", "list", "--json", cwd=tmp_path))
    assert "ternary_dot" in [block["name"] for block in listed]
    where = run(
        python, "-c", "import atriplex.rtl; print(list(atriplex.rtl.__path__))", cwd=tmp_path
    )
    assert str(tmp_path) in where
    text = run(
        *(tmp_path / "env" / "bin" / "atriplex", "run", "shipped", "Once upon a time"),
        *("--model-only", "--tokens", "3"),
        cwd=tmp_path,
    )
    assert text.strip()


def test_editable_install_is_this_checkout() -> None:
    import atriplex.rtl

    assert [Path(path).resolve() for path in atriplex.rtl.__path__] == [ROOT / "rtl"]


def test_every_source_file_names_its_licence() -> None:
    for folder in (*FOLDERS, "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            if "typings" not in path.parts:
                first = path.read_text().partition("\n")[0]
                assert first == "# SPDX-License-Identifier: Apache-2.0", path


def test_folders_import_only_what_they_may() -> None:
    may = {
        "rtl": {"rtl"},
        "sim": {"rtl", "sim"},
        "gen": {"rtl", "sim", "gen", "fpga", "asic"},
        "fpga": {"rtl", "gen", "fpga"},
        "asic": {"rtl", "gen", "asic"},
    }
    for folder, allowed in may.items():
        for path in (ROOT / folder).rglob("*.py"):
            depth = len(path.relative_to(ROOT / folder).parts)
            for dots, target in re.findall(r"^\s*from (\.+)(\w+)", path.read_text(), re.MULTILINE):
                if len(dots) == depth + 1:
                    assert target in allowed, f"{path} imports {target}"
    for path in (ROOT / "rtl").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) (numpy|cocotb)", path.read_text(), re.MULTILINE), (
            path
        )
    for path in (ROOT / "sim").rglob("*.py"):
        if not path.stem.endswith("_tb") and path.parent != ROOT / "sim":
            text = path.read_text()
            assert not re.search(r"^\s*(import|from) (amaranth|cocotb)", text, re.MULTILINE), path
