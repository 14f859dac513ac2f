"""Models that stay open in a worker, within a memory budget; the least recently used leaves first."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from backend.contract import ModelSpec, Progress
from backend.errors import PhasescopeError
from backend.models import fingerprints, hub, load, registry
from backend.settings import Settings

Key = tuple[str, int | None, str, str, str]  # spec, step, signature, dtype, device


class Resident:
    """Keep opened models up to `budget_bytes`. The model just asked for stays, even where it alone is larger."""

    def __init__(self, budget_bytes: int):
        self.budget_bytes = budget_bytes
        self._models: OrderedDict[Key, Any] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, spec: ModelSpec, settings: Settings, progress: Progress | None = None) -> Any:
        """Return the model, opened now or before; it is opened again when its files changed."""
        with self._lock:
            located = registry.locate(spec, settings)
            key = self._key(located, settings)  # of before: files that change while we read are read again
            if key not in self._models:
                if located.remote:  # first, so that its size and signature are known
                    located = registry.hub_folder(spec, hub.download(spec, _first_part(progress)))
                    key = self._key(located, settings)
                self._forget_older(key)
                self._make_room(_expected_bytes(located, settings))
                self._models[key] = load.open_model(spec, settings, progress)
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
    """Return what the weights will take in the dtype of the settings.

    Copies that a hook view makes (GPT-NeoX: its q, k, v apart) come on top; `_make_room` after the load sees them.
    """
    return sum(_bytes_of(file, getattr(torch, settings.dtype).itemsize) for file in located.files)


def _bytes_of(file: Path, itemsize: int) -> int:
    """Return the bytes of a file's numbers at `itemsize` each; whole numbers and masks stay as they are.

    A torch file does not tell without being read: its numbers are taken to be 16 bits wide, so that it never takes
    more than expected.
    """
    try:
        header, _ = fingerprints.read_header(file) if file.suffix == ".safetensors" else ({}, 0)
    except (PhasescopeError, OSError):  # the load will say what is wrong with it
        header = {}
    if not header:
        return file.stat().st_size * itemsize // 2
    return sum(_tensor_bytes(entry, itemsize) for entry in header.values())


def _tensor_bytes(entry: dict[str, Any], itemsize: int) -> int:
    begin, end = entry["data_offsets"]
    return math.prod(entry["shape"]) * itemsize if entry["dtype"].startswith(("F", "BF")) else end - begin


def _first_part(progress: Progress | None) -> Progress:
    """Return the progress of a download: the part of opening that `open_model` leaves for it."""

    def report(fraction: float, words: str = "") -> None:
        if progress:
            progress(load.DOWNLOAD * fraction, words)

    return report


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
