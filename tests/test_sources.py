"""What `data.path` names: each file once, in order, and no name taken for what it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alpacare_sft.data.load import describe_sources, load_rows, resolve_sources
from alpacare_sft.errors import DataError
from alpacare_sft.recipe.sections import DataSection, HubDataset
from tests.conftest import local_files


def write(path: Path, count: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"instruction": f"Name {path.name} {n}.", "output": f"It is {n}."} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_two_stars_reach_every_folder_and_the_files_are_named_and_counted(tmp_path: Path) -> None:
    files = [
        write(tmp_path / name, count) for name, count in (("2023/q1/r.jsonl", 4), ("2023/r.jsonl", 3), ("r.jsonl", 2))
    ]
    loaded = load_rows(DataSection(path=str(tmp_path / "**" / "*.jsonl")))
    assert [(source["name"], source["rows"]) for source in loaded.sources] == [
        (str(files[0]), 4), (str(files[1]), 3), (str(files[2]), 2)
    ]  # fmt: skip
    assert describe_sources(loaded.sources)[:4] == [
        *(f"read {file}: {count} rows, JSON Lines" for file, count in zip(files, (4, 3, 2), strict=True)),
        "in all 3 sources, 9 rows",
    ]
    assert local_files(str(tmp_path / "**")) == files


def test_of_many_files_the_first_are_named_and_all_are_counted(tmp_path: Path) -> None:
    for number in range(8):
        write(tmp_path / f"{number}.jsonl", 2)
    shown = describe_sources(load_rows(DataSection(path=str(tmp_path / "*.jsonl"))).sources)
    assert [line.split(":")[0].rpartition("/")[2] for line in shown[:5]] == [f"{n}.jsonl" for n in range(5)]
    assert shown[5:] == ["and 3 more; in all 8 sources, 16 rows"]


@pytest.mark.parametrize("name", ["a[1].jsonl", "a?.jsonl", "a*.jsonl", "a[1]/rows.jsonl"])
def test_a_path_that_exists_is_never_a_pattern(tmp_path: Path, name: str) -> None:
    for other in ("a1.jsonl", "ab.jsonl", "a1/rows.jsonl"):
        write(tmp_path / other)
    assert local_files(str(write(tmp_path / name))) == [tmp_path / name]


def test_a_folder_that_exists_is_no_pattern_either(tmp_path: Path) -> None:
    write(tmp_path / "a1" / "rows.jsonl")
    file = write(tmp_path / "a[1]" / "rows.jsonl")
    assert local_files(str(tmp_path / "a[1]" / "*.jsonl")) == [file]


def test_a_file_of_two_names_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "rows.jsonl")
    (tmp_path / "link.jsonl").symlink_to(file)
    monkeypatch.chdir(tmp_path)
    assert local_files([str(file), "rows.jsonl", "./rows.jsonl", "link.jsonl", "*.jsonl"]) == [file]


def test_the_advice_about_a_directory_works(tmp_path: Path) -> None:
    for name in ("flat[1]/a.csv", "flat[1]/b.csv", "deep/a.jsonl", "deep/x/b.jsonl", "none/a.txt"):
        write(tmp_path / name)
    for folder, pattern in (("flat[1]", "*.csv"), ("deep", "**/*.jsonl")):
        advice = f"Write {tmp_path / folder}/{pattern}."
        with pytest.raises(DataError) as refused:
            local_files(str(tmp_path / folder))
        assert str(refused.value).endswith(advice)
        assert len(local_files(str(tmp_path / folder / pattern))) == 2
    with pytest.raises(DataError, match=r"No file in it ends in \.json"):
        local_files(str(tmp_path / "none"))


def test_files_and_data_sets_of_the_hub_stand_in_one_list(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl")
    entry = HubDataset(path="owner/notes", split="test")
    sources = resolve_sources([str(file), "owner/rows", entry, "embedded", "owner/rows"], "v1")
    assert [(source.name, source.dataset) for source in sources] == [
        (str(file), None),
        ("owner/rows", HubDataset(path="owner/rows", revision="v1")),
        ("owner/notes", entry),
        ("embedded", None),
    ]


def test_an_address_is_told_to_be_downloaded() -> None:
    with pytest.raises(DataError, match=r"got the address https://example\.org/rows\.jsonl\. Download it"):
        local_files("https://example.org/rows.jsonl")
