"""Models that stay open in a worker, within a memory budget; the least recently used leaves first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from backend.contract import ModelSpec, Progress
from backend.models import load, registry
from backend.models.model import LoadedModel
from backend.settings import Settings

Key = tuple[str, int | None, str, str, str]  # spec, step, signature, dtype, device


class Resident:
    """Keep opened models up to `budget_bytes`. The model just asked for stays, even where it alone is larger."""

    def __init__(self, budget_bytes: int):
        self.budget_bytes = budget_bytes
        self._models: OrderedDict[Key, LoadedModel] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, spec: ModelSpec, settings: Settings, progress: Progress | None = None) -> LoadedModel:
        """Return the model, opened now or before; it is opened again when its files changed."""
        with self._lock:
            located = registry.locate(spec, settings)
            key = self._key(located, settings)  # of before: files that change while we read are read again
            if key not in self._models:
                self._forget_older(key)
                self._make_room(_expected_bytes(located, settings))
                model = load.open_model(spec, settings, progress)
                if located.remote:  # the download gave it a signature
                    key = self._key(registry.locate(spec, settings), settings)
                self._models[key] = model
            self._models.move_to_end(key)
            self._make_room(0)
            return self._models[key]

    def contents(self) -> list[dict[str, Any]]:
        """Return {spec, step, fingerprint, dtype, device, memory_bytes} per model, last used first."""
        with self._lock:
            cards = [m.card for m in reversed(self._models.values())]
        names = ("spec", "step", "fingerprint", "dtype", "device", "memory_bytes")
        return [{n: getattr(card, n) for n in names} for card in cards]

    def used_bytes(self) -> int:
        """Bytes of all models held."""
        return sum(m.card.memory_bytes for m in self._models.values())

    def _key(self, located: registry.Located, settings: Settings) -> Key:
        return str(located.spec), located.step, located.signature, settings.dtype, load.device(settings)

    def _forget_older(self, key: Key) -> None:
        """Drop what was opened from the same place before its files changed."""
        for old in [k for k in self._models if k[:2] == key[:2] and k[3:] == key[3:]]:
            del self._models[old]

    def _make_room(self, wanted: int) -> None:
        spare = 0 if wanted else 1  # with nothing to come, the last used one stays
        while len(self._models) > spare and self.used_bytes() + wanted > self.budget_bytes:
            self._models.popitem(last=False)


def _expected_bytes(located: registry.Located, settings: Settings) -> int:
    """Return what the weights will take: their files' size, twice that where 32 bits become 64."""
    return sum(f.stat().st_size for f in located.files) * (2 if settings.dtype == "float64" else 1)


_resident: Resident | None = None
_guard = threading.Lock()


def resident_for(settings: Settings) -> Resident:
    """Return this process's one Resident; its budget follows the settings."""
    global _resident  # noqa: PLW0603 - one per worker process, like the memory it counts
    budget = int(settings.model_memory_gb * 1e9)
    with _guard:
        if _resident is None:
            _resident = Resident(budget)
        _resident.budget_bytes = budget
        return _resident
