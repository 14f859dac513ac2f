"""Models of which others published numbers: where they are, and where to get those that are not here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backend.analyses._published import KNOWN, Known
from backend.facade.base import Base
from backend.settings import ROOT

BESIDE = ROOT.parent / "shared" / "data"  # beside a checkout, where a group shares its files


class Published(Base):
    """The part of the facade that knows of published numbers."""

    def published(self) -> list[dict[str, Any]]:
        """Return {name, title, told, n, spec, file, origin, folder} per model; spec is '' where its file is absent."""
        return [self._published(known) for known in KNOWN]

    def _published(self, known: Known) -> dict[str, Any]:
        found = next((f for f in self._places(known) if f.is_file()), None)
        spec = f"tl:{known.name}" if not known.file else f"tl:{found}" if found else ""
        return {"name": known.name, "title": known.title, "told": known.told, "n": len(known.lines), "spec": spec,
                "file": known.file, "origin": known.origin, "folder": str(self.settings.data)}  # fmt: skip

    def _places(self, known: Known) -> list[Path]:
        return [folder / known.file for folder in (self.settings.data, BESIDE) if known.file]
