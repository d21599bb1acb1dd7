"""Every example of the docstrings, of the README and of the documentation's pages runs as printed."""

import doctest
import importlib
import importlib.util
import pkgutil
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import ddu_ops
from processes import ROOT

BLOCK = re.compile(r"^```(?:python|pycon|py)\b[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Pages that show Python. What Sphinx runs when it builds the documentation, it checks by itself.
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if BLOCK.search(path.read_text(encoding="utf-8"))
}
# What pages show how to use beside this package, and an environment need not have.
OPTIONAL = re.compile(r"^ *(?:import|from) (lightning|segmentation_models_pytorch|timm|torchvision)\b", re.MULTILINE)
EXTRAS = {"ddu_ops.onnx": "onnxscript"}
FLAGS = doctest.NORMALIZE_WHITESPACE

MODULES = ["ddu_ops", *(m.name for m in pkgutil.walk_packages(ddu_ops.__path__, "ddu_ops.") if m.name != "ddu_ops._C")]


def in_scope() -> dict[str, Any]:
    return {"torch": torch, "F": F, **{name: getattr(ddu_ops, name) for name in ddu_ops.__all__}}


def docstring_examples() -> dict[str, doctest.DocTest]:
    found = {}
    for name in MODULES:
        module = importlib.import_module(name)
        for test in doctest.DocTestFinder(recurse=True).find(module, name):
            if test.examples:
                found[test.name] = test
    return found


EXAMPLES = docstring_examples()


def run(test: doctest.DocTest) -> None:
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    runner.run(test, out=report.append)
    results = runner.summarize(verbose=False)
    assert results.attempted == len(test.examples)
    assert results.failed == 0, "".join(report)


@pytest.mark.parametrize("name", EXAMPLES)
def test_docstring(name: str) -> None:
    if name.startswith("ddu_ops.onnx"):
        pytest.importorskip("onnxscript")  # of an extra
    test = EXAMPLES[name]
    test.globs = in_scope()
    run(test)


def test_everything_public_has_an_example() -> None:
    public = [n for n in ddu_ops.__all__ if callable(getattr(ddu_ops, n))]
    assert len(public) == 96
    shown = {name.rpartition(".")[2] for name in EXAMPLES if not name.startswith("ddu_ops.reference")}
    assert shown >= set(public)
    assert shown >= set(ddu_ops.layers.__all__)
    shown = {name.rpartition(".")[2] for name in EXAMPLES if name.startswith("ddu_ops.reference")}
    assert shown >= {"dynamic_dilation_unfold", "dynamic_dilation_fold"}


def test_the_pages_are_found() -> None:
    assert "README.md" in PAGES
    assert any(name.startswith("docs/how_to/") for name in PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_page(name: str) -> None:
    """The blocks marked as Python, in order, in one namespace: as a reader would paste them.

    A block that imports an optional package which is not installed is left out.
    """
    text = PAGES[name].read_text(encoding="utf-8")
    scope: dict[str, Any] = {}
    for block in BLOCK.finditer(text):
        line = text[: block.start(1)].count("\n")
        source = block[1]
        needed = [*OPTIONAL.findall(source), *(EXTRAS[module] for module in EXTRAS if f"import {module}" in source)]
        if any(importlib.util.find_spec(package) is None for package in needed):
            continue
        if source.lstrip().startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(source, scope, f"{name}:{line + 1}", name, line)
            test.globs = scope  # and not a copy, so that the next block sees the names
            report: list[str] = []
            runner = doctest.DocTestRunner(optionflags=FLAGS)
            runner.run(test, out=report.append, clear_globs=False)
            assert runner.summarize(verbose=False).failed == 0, "".join(report)
        else:
            exec(compile("\n" * line + source, name, "exec"), scope)


def test_every_row_has_its_test() -> None:
    """The tests that docs/pytorch.md names exist."""
    defined = {file.name: file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py")}
    rows = (ROOT / "docs" / "pytorch.md").read_text(encoding="utf-8").splitlines()
    named = [(row, re.findall(r"`(?:tests/[a-z/]*)?(test_[a-z0-9_.:]+)`", row)) for row in rows]
    assert any(names for _, names in named)
    for row, names in named:
        file = ""
        for name in names:
            file, _, function = name.partition("::") if ".py" in name else (file, "", name)
            assert file in defined, row
            assert not function or f"def {function}(" in defined[file], row
