"""How the package is built: who may import whom, what loads late, and what is public."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import alpacare_sft

PACKAGE = Path(alpacare_sft.__file__).parent

# A module imports only from those above it: data's way through the house is one way.
ORDER = [
    "",
    "errors",
    "runtime",
    "hub",
    "hub.errors",
    "recipe",
    "recipe.sections",
    "recipe.names",
    "recipe.document",
    "recipe.rules",
    "recipe.upstream",
    "recipe.keys",
    "recipe.values",
    "recipe.validation",
    "recipe.loading",
    "recipe.resolved",
    "recipe.reference",
    "recipe.options",
    "recipe.shipped",
    "run",
    "run.shapes",
    "run.directory",
    "run.json_lines",
    "run.record",
    "run.trained",
    "data",
    "data.equality",
    "data.words",
    "reporting",
    "reporting.figures",
    "reporting.pages",
    "reporting.evaluation_page",
    "model",
    "model.cpu_layout",
    "training",
    "training.checks",
    "model.prompt",
    "model.embedded",
    "model.base",
    "data.whitespace",
    "data.characters",
    "data.clean",
    "data.sources",
    "data.delimited",
    "data.conversations",
    "data.json_files",
    "data.files",
    "data.hub",
    "data.columns",
    "data.load",
    "data.near_duplicates",
    "data.split",
    "data.encoded",
    "data.publisher_splits",
    "data.report",
    "data.prepare",
    "data.saving",
    "training.checkpoints",
    "training.batches",
    "training.recovery",
    "training.forwards",
    "training.callbacks",
    "training.trainer",
    "training.config",
    "model.cost",
    "training.plan",
    "reporting.plan_table",
    "model.adapter",
    "evaluation",
    "evaluation.generation",
    "evaluation.intervals",
    "reporting.licenses",
    "reporting.evidence",
    "reporting.card",
    "reporting.run_report",
    "training.train",
    "reporting.terminal",
    "evaluation.metrics",
    "evaluation.similarity",
    "review",
    "review.sheets",
    "review.reading",
    "review.terminal",
    "review.summary",
    "review.judge",
    "evaluation.selection",
    "evaluation.answering",
    "evaluation.held_out",
    "evaluation.compared_models",
    "evaluation.scoring",
    "evaluation.results",
    "evaluation.evaluate",
    "evaluation.rerun",
    "evaluation.terminal",
    "evaluation.ask",
    "hub.files",
    "hub.preflight",
    "hub.push",
    "hub.doctor",
    "cli",
    "__main__",
]

HEAVY = {"accelerate", "bitsandbytes", "datasets", "evaluate", "matplotlib", "numpy", "peft", "scipy", "torch"}
HEAVY |= {"transformers", "trl"}
# What a module needs as soon as it is imported: its classes inherit from it, or every call needs it.
LOADS_AT_IMPORT = {
    "evaluation.ask": ["torch", "transformers"],
    "training.callbacks": ["torch", "transformers"],
    "training.forwards": ["torch"],
    "training.recovery": ["torch"],
    "model.cost": ["torch"],
    "model.cpu_layout": ["torch"],
    "evaluation.answering": ["torch"],
    "evaluation.generation": ["torch"],
    "evaluation.intervals": ["numpy", "scipy"],
    "evaluation.metrics": ["datasets", "evaluate"],
    "evaluation.scoring": ["numpy"],
    "evaluation.similarity": ["torch"],
    "training.trainer": ["torch", "transformers", "trl"],
}
LIGHT = [
    "errors",
    "recipe.loading",
    "recipe.sections",
    "recipe.resolved",
    "run.shapes",
    "run.directory",
    "reporting.pages",
    "reporting.evaluation_page",
    "data.prepare",
    "model.prompt",
    "model.base",
    "cli",
]


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def statements(node: ast.AST, inside_functions: bool) -> Iterator[ast.AST]:
    """Every statement under a node, but not what stands under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not inside_functions:
            continue
        yield child
        yield from statements(child, inside_functions)


@cache
def imports(module: str, inside_functions: bool) -> frozenset[str]:
    """Dotted names that a module imports."""
    found: set[str] = set()
    for statement in statements(ast.parse(MODULES[module].read_text(encoding="utf-8")), inside_functions):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{module} imports by a relative name"
            found |= {f"{statement.module}.{alias.name}" for alias in statement.names}
    return frozenset(found)


def ours(module: str, inside_functions: bool = True) -> set[str]:
    """Modules of the package that a module imports."""
    names = (name for name in imports(module, inside_functions) if name.split(".")[0] == "alpacare_sft")
    dotted = [name.removeprefix("alpacare_sft").lstrip(".") for name in names]
    return {name if name in MODULES else name.rpartition(".")[0] for name in dotted} - {module}


def test_every_module_has_its_place_in_the_order() -> None:
    assert sorted(ORDER) == sorted(MODULES)


@pytest.mark.parametrize("module", [name for name in ORDER if name in MODULES])
def test_a_module_imports_only_from_those_above_it(module: str) -> None:
    assert sorted(ours(module) - set(ORDER[: ORDER.index(module)])) == []


def test_heavy_libraries_load_where_they_are_used() -> None:
    found = {
        module: sorted({name.split(".")[0] for name in imports(module, inside_functions=False)} & HEAVY)
        for module in ORDER
        if module in MODULES
    }
    assert {module: names for module, names in found.items() if names} == LOADS_AT_IMPORT


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_imports_no_heavy_one(module: str) -> None:
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        seen.add(name)
        waiting += sorted(ours(name, inside_functions=False) - seen)
    assert sorted(seen & set(LOADS_AT_IMPORT)) == []


# What a light verb must not import, not even inside its functions: names of modules, or of whole rooms.
MUST_NOT_IMPORT = {
    "evaluation.ask": {"data", "training", "review", "reporting", "hub.files", "hub.preflight", "hub.push"},
    "hub.push": {"data", "training", "review", "model.base", "model.embedded", "model.adapter", "model.cpu_layout"},
}


@pytest.mark.parametrize("module", MUST_NOT_IMPORT)
def test_a_light_verb_does_not_import_the_other_stages(module: str) -> None:
    seen, waiting = set(), [module]
    while waiting:
        seen.add(name := waiting.pop())
        waiting += sorted(ours(name) - seen)
    assert sorted(name for name in seen if {name, name.split(".")[0]} & MUST_NOT_IMPORT[module]) == []


def test_the_rank_of_a_process_is_read_in_one_place() -> None:
    readers = [name for name, path in MODULES.items() if "RANK" in path.read_text(encoding="utf-8")]
    assert readers == ["runtime"]


def test_public_names_are_those_that_load() -> None:
    assert alpacare_sft.__all__ == sorted({*alpacare_sft._HOMES, "__version__"})
    for name, home in alpacare_sft._HOMES.items():
        assert getattr(alpacare_sft, name) is getattr(import_module(f"alpacare_sft.{home}"), name)


def test_a_name_that_is_not_public_is_told_as_any_missing_name() -> None:
    with pytest.raises(AttributeError, match="module 'alpacare_sft' has no attribute 'trian'"):
        alpacare_sft.trian  # noqa: B018


def test_every_directory_of_the_package_is_packaged() -> None:
    import tomllib

    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {path.parent.relative_to(PACKAGE.parent).as_posix().replace("/", ".") for path in MODULES.values()}
    shipped = {"alpacare_sft.shipped"}  # the folder recipes/, where a wheel has it
    assert set(project["tool"]["setuptools"]["packages"]) == folders | shipped
