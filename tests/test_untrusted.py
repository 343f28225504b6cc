"""What others wrote, at the terminal, in paths and in sizes: it gives no orders, climbs nowhere and fills no memory."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from alpacare_sft.cli import main
from alpacare_sft.errors import RecipeError
from alpacare_sft.recipe.loading import load_recipe
from alpacare_sft.runtime import open_console, printable, say

# Sets a title, clears the screen, turns the direction of text; C1 controls do the same in one sign.
ORDERS = "a\x1b]0;title\x07b\x1b[2Jc\x9b31md\u202ee\u2066f"
KEPT = "a\ufffd]0;title\ufffdb\ufffd[2Jc\ufffd31md\ufffde\ufffdf"


def test_what_a_terminal_takes_for_orders_is_shown_as_a_sign() -> None:
    assert printable(ORDERS) == KEPT
    assert printable("a\tb\nc µ ≥ 5 \u200d\u200c é 漢") == "a\tb\nc µ ≥ 5 \u200d\u200c é 漢"


def test_messages_hold_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    say(ORDERS)
    (tmp_path / "rows.jsonl").write_text('{"\\u001b[2Jcolumn": "x"}\n')
    words = ["data", "recipes/demo.yaml", "--data.path", str(tmp_path / "rows.jsonl"), "--output_dir", str(tmp_path)]
    assert main(words) == 2
    shown = capsys.readouterr()
    assert KEPT in shown.out and "[2Jcolumn" in shown.err
    assert not {"\x1b", "\x9b", "\x07", "\u202e"} & set(shown.out + shown.err)


def test_tables_and_panels_hold_none_and_keep_their_own_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = open_console()
    console.file = io.StringIO()
    table = Table(title=ORDERS)
    table.add_column(ORDERS)
    table.add_row(Text(ORDERS, style="bold green"))
    console.print(table, Panel(Text(ORDERS)), ORDERS)
    shown = console.file.getvalue()
    assert not {"\x9b", "\x07", "\u202e"} & set(shown)
    assert "\x1b]" not in shown and "\x1b[2J" not in shown and "\x1b[1;32m" in shown


def test_no_table_is_made_by_another_console() -> None:
    package = Path(__file__).parents[1] / "alpacare_sft"
    makers = [path.name for path in package.rglob("*.py") if "= Console()" in path.read_text(encoding="utf-8")]
    assert makers == []


def test_a_recipe_of_a_gigabyte_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    with path.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(RecipeError, match="is too large for a recipe: at most 1 MiB"):
        load_recipe(path)


TOKEN = "hf_PlantedTokenThatNobodyMaySee0123456789"


@pytest.mark.slow
def test_a_token_is_in_no_output_file_or_process(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []
    begin = subprocess.Popen.__init__

    def watched(self: Any, args: Any, *rest: Any, **options: Any) -> None:
        started.append(repr(args))
        begin(self, args, *rest, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", watched)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    document["train"]["max_steps"] = 2
    document |= {"generate": {"max_new_tokens": 4}, "evaluate": {"bootstrap_samples": 100}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(document))
    for verb in ("data", "train", "eval", "report", "push --dry-run", "push --debug", "doctor"):
        name, *flags = verb.split()
        main([name, str(recipe), *flags, "--hub.repo_id", "tester/x"])
    main(["data", str(recipe), "--debug", "--data.path", str(tmp_path / "none.jsonl")])
    shown = capsys.readouterr()
    assert "Traceback" in shown.err and started
    assert TOKEN not in shown.out + shown.err + "".join(started)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
