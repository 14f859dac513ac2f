"""Every file here is one training task. Adding a recipe is adding a file; nothing else lists them.

A file whose name starts with `_` holds helpers of several. The others import no torch at module level, so that a form
can be made from their params anywhere.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from backend.contract import Recipe
from backend.errors import NotFound


@cache
def registry() -> dict[str, Recipe]:
    """Return every recipe of this folder by name."""
    names = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    found = [v for module in modules for v in vars(module).values() if isinstance(v, Recipe)]
    return {r.name: r for r in sorted(found, key=lambda r: r.name)}


def get(name: str) -> Recipe:
    """Return a recipe. Raises NotFound that lists the known ones."""
    if name not in registry():
        raise NotFound(f"Recipe {name!r}", "no such recipe", f"Use one of: {', '.join(registry())}")
    return registry()[name]
