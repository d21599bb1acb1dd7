"""Loads the extension, or says why it cannot be loaded and how to fix that.

Torch's C++ interface changes from one minor version to the next. An extension built for another version fails to load
because of an undefined symbol or, worse, loads. So the build records its torch version beside the extension.
"""

import importlib
import json
from pathlib import Path

import torch

_FOLDER = Path(__file__).parent


def _fix() -> str:
    """The command that builds the extension for the installed torch."""
    if (_FOLDER.parent / "setup.py").exists():
        return f"pip install --no-build-isolation --no-deps -e {_FOLDER.parent}"
    return "pip install --no-build-isolation --no-deps --no-cache-dir --force-reinstall --no-binary ddu_ops ddu_ops"


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _load() -> str | None:
    """Registers the operators. Returns what is wrong if that fails."""
    record = _FOLDER / "_built_for.json"
    built = json.loads(record.read_text()) if record.exists() else {"torch": None}
    here = f"torch {torch.__version__} is installed"
    if built["torch"] is not None and _minor(built["torch"]) != _minor(torch.__version__):
        return f"ddu_ops was built for torch {built['torch']}, but {here}: run `{_fix()}`"
    try:
        importlib.import_module("ddu_ops._C")
    except ModuleNotFoundError:
        return f"the extension of ddu_ops is not built: run `{_fix()}`"
    except ImportError as error:
        what = f"built for torch {built['torch'] or 'of unknown version'}, CUDA {built.get('cuda') or 'none'}"
        return f"ddu_ops, {what}, does not load where {here} ({error}): run `{_fix()}`"
    return None


problem = _load()


def require() -> None:
    """Called by modules that need the operators.

    Raises:
        ImportError: if the operators are missing, with the reason and the command that fixes it.
    """
    if problem is not None:
        raise ImportError(problem)
