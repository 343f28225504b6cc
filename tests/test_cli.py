"""The command line: verbs, exit codes, and what `--help` must not wait for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from alpacare_sft import __version__
from alpacare_sft.cli import VERBS, main, parse_time, with_default_verb

DEMO = str(Path(__file__).parent.parent / "recipes" / "demo.yaml")
LOOK = """
import sys
from alpacare_sft.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    print("exit", stop.code)
print("heavy", sorted({"torch", "transformers", "trl", "peft", "datasets", "numpy", "pydantic"} & set(sys.modules)))
"""


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "--help"], ["schema", "-h"]])
def test_help_and_version_load_nothing_heavy(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LOOK, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["exit 0", "heavy []"]
    assert done.stderr == ""


def test_version_and_help_say_what_they_should(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--version"], ["--help"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith(f"alpacare-sft {__version__}\n")
    assert [verb for verb in VERBS if f"    {verb}" not in told] == []
    assert "exit codes: 0 done; 2 the recipe" in told and "not medical advice" in told


def test_no_word_at_all_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().out.startswith("usage: alpacare-sft")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a.yaml"], ["train", "a.yaml"]),
        (["a.yaml", "--train.seed", "1"], ["train", "a.yaml", "--train.seed", "1"]),
        (["--overwrite", "a.yaml"], ["train", "--overwrite", "a.yaml"]),
        (["data", "a.yaml"], ["data", "a.yaml"]),
        (["train", "a.yaml"], ["train", "a.yaml"]),
        (["--version"], ["--version"]),
    ],
)
def test_a_recipe_without_a_verb_is_trained(words: list[str], expected: list[str]) -> None:
    assert with_default_verb(words) == expected


def test_every_module_form_is_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "alpacare_sft", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"alpacare-sft {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian", DEMO], "the first word must be a verb (recipes, data, plan, train, eval, "),
        (["trian", DEMO], "got 'trian'. Did you mean train?"),
        (["--train.seed", "1", DEMO], "got '1'. Overrides come after it."),
        (["none.yaml"], "none.yaml must be a recipe file, none is there."),
        (["data", "none.yaml"], "none.yaml must be a recipe file, none is there."),
        (["eval", "none.yaml"], "none.yaml must be a recipe file, none is there."),
        (["train", DEMO, "--train.sed", "1"], "train.sed is not a key. Did you mean train.seed?"),
        (["train", DEMO, "--overwite"], "--overwite must be followed by a value."),
        (["train", DEMO, "--stop-after", "8:30"], "--stop-after must be hours, minutes, seconds such as 8h30m"),
        (["rerun", "runs/demo", "--train.seed", "1"], "rerun takes no overrides, got --train.seed 1."),
        (["doctor", "--train.seed=1"], "doctor takes no overrides, got --train.seed=1."),
        (["ask", DEMO, "caf\udce9"], "must be UTF-8 text. Set the terminal to UTF-8."),
        (["schema", "a.yaml"], "schema takes no overrides, got a.yaml."),
        (["schema", "--output", "."], "--output must be a file that can be written, got .: "),
    ],
)
def test_a_wrong_command_is_one_message_and_exit_2(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and told in err and "Traceback" not in err
    assert out == "" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["data"], ["data", DEMO, "--show", "x"], ["schema", "--output"]])
def test_a_command_that_cannot_be_parsed_exits_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("usage: alpacare-sft")


@pytest.mark.parametrize("words", [["train", "none.yaml", "--debug"], ["--debug", "none.yaml"]])
def test_debug_shows_the_traceback_before_the_message(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert err.rstrip().splitlines()[-1] == "error: none.yaml must be a recipe file, none is there."


@pytest.mark.parametrize(
    ("error", "code"), [("DataError", 2), ("ModelError", 1), ("RunError", 1), ("StoppedError", 75)]
)
def test_each_error_has_its_exit_code(error: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import alpacare_sft
    from alpacare_sft import cli

    def fail(*_: object) -> int:
        raise getattr(alpacare_sft, error)("what went wrong")

    monkeypatch.setattr(cli, "run_verb", fail)
    assert main(["train", DEMO]) == code


def test_an_interrupt_exits_130_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from alpacare_sft import cli

    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_verb", interrupt)
    assert main(["train", DEMO]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_the_schema_goes_to_a_file_or_to_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "schema.json"
    assert main(["schema", "--output", str(path)]) == 0
    assert capsys.readouterr().out == ""
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == path.read_text(encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8"))["required"] == ["model", "data", "output_dir"]


def test_data_shows_the_funnel_the_splits_and_the_rows(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model.model_name_or_path", str(tiny_model), "--output_dir", str(tmp_path / "run")]
    assert main(["data", DEMO, "--show", "2", *words]) == 0
    told = capsys.readouterr().out
    wanted = [
        "drop_missing",
        "straight_quotes",
        "no room for an answer",
        "validation",
        "Tokens in the loss are",
        "written to",
    ]
    assert [words for words in wanted if words not in told] == []
    assert told.count("╭─ row ") == 2
    assert sorted(path.name for path in (tmp_path / "run" / "data").iterdir()) == [
        "report.html", "report.json", "test.jsonl", "train.jsonl", "validation.jsonl",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("topic", "parts"),
    [
        ("lora", ["--lora.r VALUE", "a whole number; default: 8", "--lora.target_modules VALUE"]),
        ("train.learn", ["--train.learning_rate VALUE", "2e-05)"]),
        ("data.splits", ["--data.splits.test VALUE"]),
        ("resume", ["--resume VALUE", "one of auto, never"]),
    ],
)
def test_help_of_a_section_shows_its_keys(topic: str, parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help", topic]) == 0
    out = capsys.readouterr().out
    assert all(part in out for part in parts), out
    assert "+ VALUE" not in out and "push_to_hub" not in out


def test_help_of_no_key_names_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help", "lorra"]) == 2
    assert "Did you mean lora?" in capsys.readouterr().err


def test_bash_completes_verbs_flags_keys_and_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    (tmp_path / "c.bash").write_text(capsys.readouterr().out)
    (tmp_path / "mine.yaml").touch()
    asked = {
        "tra": "train", "train mi": "mine.yaml", "eval r.yaml --lim": "--limit",
        "train r.yaml --lora.bias n": "none", "train r.yaml --train.learn": "--train.learning_rate",
    }  # fmt: skip
    for words, completed in asked.items():
        line = f"source c.bash; COMP_WORDS=(alpacare-sft {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))"
        script = f"{line}; _shtab_alpacare_sft; echo ${{COMPREPLY[@]}}"
        shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
        assert shown.stdout.split() == [completed], (words, shown)


def test_completion_without_its_package_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert "pip install 'alpacare_sft[completion]'" in capsys.readouterr().err


def test_times_are_hours_minutes_and_seconds() -> None:
    assert [parse_time(text) for text in ("8h30m", "45m", "90s", "1h1s")] == [30600, 2700, 90, 3601]
    assert parse_time(None) is None
