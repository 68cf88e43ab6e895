"""What importing and installing the package promises."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

import vastmax

CORE = [
    "calibration",
    "contrastive",
    "density",
    "functional",
    "heads",
    "metrics",
    "optim",
    "parallel",
    "reduction",
    "samplers",
    "scoring",
    "trees",
]


def core_modules():
    names = ["vastmax"]
    for part in CORE:
        module = importlib.import_module(f"vastmax.{part}")
        names.append(module.__name__)
        if hasattr(module, "__path__"):
            names += [f"{module.__name__}.{m.name}" for m in pkgutil.iter_modules(module.__path__)]
    return [*names, *(f"vastmax.data.{name}" for name in ("batches", "contexts", "scripts", "text", "vocabulary"))]


@pytest.mark.parametrize("name", core_modules())
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    names = {**vars(module), "torch": importlib.import_module("torch")}
    assert doctest.testmod(module, extraglobs=names).failed == 0


def test_the_readme_runs():
    """Its Python, as a newcomer would paste it, but for the number of classes."""
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block.replace("1_000_000", "10_000"), "README.md", "exec"), {})


def test_public_names_exist():
    parts = [part for name in vastmax.__all__ if inspect.ismodule(part := getattr(vastmax, name))]
    for part in [vastmax, *parts]:
        assert part.__all__ == sorted(part.__all__, key=lambda n: (n != n.upper(), n[0].islower(), n))
        for name in part.__all__:
            assert getattr(part, name).__doc__, name


def test_importing_the_library_imports_nothing_of_the_extras():
    """Nothing beyond torch, numpy and the standard library, and neither tasks nor study."""
    extras = ["lightning", "tokenizers", "polars", "typer", "rich", "matplotlib", "jinja2", "scipy", "torchmetrics"]
    code = (
        "import sys, torch; before = set(sys.modules); import vastmax; "
        f"print([m for m in sys.modules if m.split('.')[0] in {extras} and m not in before]"
        " + [m for m in sys.modules if m.startswith(('vastmax.tasks', 'vastmax.study', 'vastmax.cli'))])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_core_depends_on_torch_and_numpy_alone():
    core = [r for r in requires("vastmax") if "extra ==" not in r]
    assert sorted(r.split(">")[0] for r in core) == ["numpy", "torch"]


def test_the_command_without_its_extra_says_what_to_install():
    code = (
        "import importlib.util as u, sys; real = u.find_spec; "
        "u.find_spec = lambda n, *a: None if n == 'lightning' else real(n, *a); "
        "from vastmax.cli import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "pip install 'vastmax[train]'" in result.stderr
