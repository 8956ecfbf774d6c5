"""Import direction and single owners, read from the source: an import counts wherever it stands, even unexecuted."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "yarn_train"
FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in (ROOT / PACKAGE).rglob("*.py")
}
SCRIPTS = {file.stem: file for file in (ROOT / "data").glob("*.py")}

# From the bottom up. A module belongs to the line with the longest matching name and imports from lower lines, or from
# its own package on its own line.
LAYERS = [
    ["errors", "redact", "intervals"],
    ["problem_list"],
    ["rope.frequencies", "rope.base", "optim.schedule", "data.pack", "data.mixture", "model.spans", "parallel.shard"],
    ["option_field"],
    ["options_training", "options_job", "options_eval"],
    ["options"],
    ["option_values"],
    ["data_parts"],
    ["option_rules_eval"],
    ["option_rules"],
    ["config"],
    ["hydra_options"],
    ["stages", "overrides", "remote_code", "model_revision", "free_options", "sweep.names", "sweep.record"],
    ["composition"],
    ["dist"],
    ["console"],
    ["data", "metrics"],
    [
        *(
            "rope.hf",
            "rope.undo",
            "rope.verify",
            "model.loss",
            "model.flops",
            "model.kept",
            "model.kernels",
            "model.merge",
            "model.rotate",
            "model.folder",
            "model.adapter_names",
        ),
        *("model.primitives", "model.varlen", "model.documents", "model.windows", "model.local", "model.backends"),
        *("model.availability", "model.registry"),
    ],
    ["model.weights", "interop", "gguf"],
    [
        "optim.adamw",
        "optim.host_moments",
        "optim.state",
        "model.adapters",
        "model.attention",
        "model.causal_lm",
        "model.load",
        "model.probe",
        "model.matrices",
        "model.cached",
        "model.unrotated",
        "model.tables",
    ],
    ["parallel"],
    ["engine", "checkpoint"],
    ["train", "eval", "report"],
    ["plan", "compare", "sweep"],
    ["launch", "dry_run", "doctor"],
    ["checks", "multirun"],
    [
        *("app", "cli", "eval.__main__", "report.__main__", "plan.__main__", "doctor.__main__"),
        *("export", "export_gguf", "prepare", "diff"),
    ],
    ["reproduce"],
]
SIBLINGS = {
    ("checkpoint.manager", "engine.base"),
    ("engine.deepspeed", "checkpoint.fragments"),
    ("eval.__main__", "cli"),
    ("plan.__main__", "cli"),
    ("doctor.__main__", "cli"),
    ("prepare", "cli"),
}  # allowed on one line, across packages

OWNERS = {
    "hydra": {"cli", "composition", "hydra_options", "multirun", "overrides"},
    "omegaconf": {"cli", "composition", "hydra_options", "multirun"},
    "flash_attn": {"model.backends.flash_attn2", "model.backends.flash_attn4"},
    "flash_attn_3": {"model.backends.flash_attn3"},
    "flash_attn_interface": {"model.backends.flash_attn3"},
    "deepspeed": {"engine.deepspeed"},
    "wandb": {"metrics.wandb_sink"},
    "tensorboard": {"metrics.tensorboard_sink"},
    "optuna": {"sweep.study", "sweep.optuna_parts"},
    "plotly": {"report.plotly"},
    "liger_kernel": {"model.loss"},
    "gguf": {"gguf.package"},
    "torchao": {"optim.adamw"},
    "peft": {"model.adapters"},
    "lm_eval": {"eval.harness.lm_eval_calls", "eval.harness.language_model", "eval.harness.task"},
}


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def short(module: str) -> str:
    """yarn_train.model.loss -> model.loss."""
    return module.removeprefix(PACKAGE).removeprefix(".")


@cache
def imports(module: str) -> tuple[str, ...]:
    """Full names of all modules that a module of the package names in any import statement."""
    return tuple(_imports(tree(FILES[module]), module, FILES[module].name == "__init__.py"))


def _imports(source: ast.Module, module: str, is_package: bool) -> Iterator[str]:
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            above = parts[: len(parts) - node.level + is_package] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{origin}.{alias.name}"
                yield name if name in FILES else origin


def internal(module: str) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] == PACKAGE}


def external(module: str) -> set[str]:
    return {name.split(".")[0] for name in imports(module)} - {PACKAGE}


def layer(module: str) -> int:
    """Line of a module, by the longest name in LAYERS that it is or lies below."""
    names = [(len(name), number) for number, line in enumerate(LAYERS) for name in line if _within(short(module), name)]
    assert names, f"{module} has no place in LAYERS"
    return max(names)[1]


def _within(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def package(module: str) -> str:
    return short(module).split(".")[0]


def allowed(importer: str, imported: str) -> bool:
    if package(importer) == "report":
        return package(imported) in ("report", "errors", "intervals", "config") or short(imported) == "sweep.record"
    if (short(importer), short(imported)) in SIBLINGS:
        return True
    above, below = layer(importer), layer(imported)
    return below < above or (below == above and package(importer) == package(imported))


MODULES = sorted(name for name, file in FILES.items() if file.name != "__init__.py")


def test_the_scan_sees_imports_of_every_form() -> None:
    source = """
import yarn_train.errors
from . import attention
from ..rope import hf as rope_hf
from .loss import LOSSES
if TYPE_CHECKING:
    from ..config import Config
def late():
    import torch.nn
"""
    assert list(_imports(ast.parse(source), "yarn_train.model.load", False)) == [
        "yarn_train.errors",
        "yarn_train.model.attention",
        "yarn_train.rope.hf",
        "yarn_train.model.loss",
        "yarn_train.config",
        "torch.nn",
    ]


def test_every_module_has_a_place() -> None:
    assert all(layer(module) >= 0 for module in MODULES)


def test_packages_import_nothing_by_themselves() -> None:
    assert {name: imports(name) for name, file in FILES.items() if file.name == "__init__.py" and imports(name)} == {}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    wrong = [short(name) for name in sorted(internal(module)) if name in FILES and not allowed(module, name)]
    assert wrong == [], f"{short(module)} must not import {wrong}"


def test_there_are_no_cycles() -> None:
    graphlib.TopologicalSorter({module: internal(module) for module in MODULES}).prepare()


def test_train_and_eval_never_import_each_other() -> None:
    pairs = [(module, name) for module in MODULES for name in internal(module)]
    assert [p for p in pairs if {package(p[0]), package(p[1])} == {"train", "eval"}] == []


@pytest.mark.parametrize("root", ["errors", "config", "stages", "cli", "report", "compare", "diff", "sweep"])
def test_what_must_start_fast_never_imports_torch_not_even_through_others(root: str) -> None:
    reached, waiting = set(), [m for m in MODULES if _within(short(m), root)]
    assert waiting
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += [name for name in internal(module) if name in FILES]
    heavy = {"torch", "transformers", "datasets"}
    assert {short(m): sorted(external(m) & heavy) for m in sorted(reached) if external(m) & heavy} == {}


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_with_an_owner_is_imported_nowhere_else(library: str) -> None:
    """By an import statement, or by its name as a string (find_spec, import_module)."""
    users = {short(module) for module in MODULES if library in external(module) or library in _strings(module)}
    assert users <= OWNERS[library]


def _strings(module: str) -> set[str]:
    """String constants that are arguments of a call."""
    calls = [node for node in ast.walk(tree(FILES[module])) if isinstance(node, ast.Call)]
    return {a.value for c in calls for a in c.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}


def _reads_environment(source: ast.Module) -> bool:
    names = {"environ", "environb", "getenv", "putenv", "unsetenv"}
    return any(
        (isinstance(node, ast.Attribute) and node.attr in names and ast.unparse(node.value) == "os")
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and {a.name for a in node.names} & names)
        for node in ast.walk(source)
    )


def test_only_dist_environment_reads_or_writes_the_environment() -> None:
    scripts = {f"data/{name}.py": file for name, file in SCRIPTS.items()}
    users = {short(name) for name, file in {**FILES, **scripts}.items() if _reads_environment(tree(file))}
    assert users == {"dist.environment"}
