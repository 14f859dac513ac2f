"""Models of the Hugging Face hub: found in the local cache, else downloaded with progress. No torch at import."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backend.contract import ModelSpec, Progress
from backend.errors import BadInput, NotFound, PhasescopeError, Unsupported

#: weights as safetensors and everything that is plain JSON or text; never a pickle, never code
FILES: dict[str, Any] = {
    "allow_patterns": ["*.safetensors", "*.json", "tokenizer.model", "spiece.model", "*.txt"],
    "ignore_patterns": ["*/*"],
}


def cached(spec: ModelSpec) -> Path | None:
    """Return the snapshot folder of the local cache, or None where it is absent or lacks its weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(spec.place, revision=spec.revision or None, local_files_only=True, **FILES))
    except HFValidationError:
        raise BadInput(f"Model {str(spec)!r}", "not a name of the hub", "Write hub:OWNER/NAME@REVISION") from None
    except (LocalEntryNotFoundError, FileNotFoundError, ValueError):
        return None
    return folder if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")) else None


def download(spec: ModelSpec, progress: Progress) -> Path:
    """Fetch config, tokenizer and safetensors of a revision and return the snapshot's folder.

    Raises NotFound for no such name or revision, Unsupported for pickled weights only, BadInput without a network.
    """
    from huggingface_hub import snapshot_download

    with _told(spec):
        folder = snapshot_download(
            spec.place, revision=spec.revision or None, tqdm_class=_meter(spec, progress), max_workers=2, **FILES
        )
    if not any(Path(folder).glob("*.safetensors")):
        raise Unsupported(f"Model {str(spec)!r}", "the hub holds no safetensors of it", "Choose another revision")
    return Path(folder)


@contextlib.contextmanager
def _told(spec: ModelSpec) -> Iterator[None]:
    from huggingface_hub import errors

    asked = f"Model {str(spec)!r}"
    try:
        yield
    except errors.RevisionNotFoundError:
        raise NotFound(asked, f"the hub has no revision {spec.revision!r} of it", "Check the revision") from None
    except errors.GatedRepoError:
        raise NotFound(asked, "the hub asks for a login to read it", "Log in with the hub's own tool") from None
    except errors.RepositoryNotFoundError:
        raise NotFound(asked, "the hub knows no such model", "Check the name") from None
    except errors.HFValidationError:
        raise BadInput(asked, "not a name of the hub", "Write hub:OWNER/NAME@REVISION") from None
    except PhasescopeError:  # a person cancelled
        raise
    except Exception:  # noqa: BLE001 - offline, no route, proxy, time-out, hub down: to a person they are one
        todo = "Connect to the network, or download it elsewhere and open it as dir:PATH"
        raise NotFound(asked, "not in the local cache, and the hub cannot be reached", todo) from None


def _meter(spec: ModelSpec, progress: Progress) -> type:
    """Return a tqdm class whose byte bars, taken together, call progress(fraction, words)."""
    from tqdm.auto import tqdm

    bars: dict[int, tuple[float, float]] = {}
    lock = threading.Lock()

    class Meter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any):
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})
            self.counted, self.size = 0.0, float(kwargs.get("total") or 0)
            self.bytes = kwargs.get("unit") == "B"

        def update(self, n: float | None = 1) -> None:
            self.counted += n or 0
            size = max(self.size, float(self.total or 0))
            if self.bytes and size:
                with lock:
                    bars[id(self)] = (min(self.counted, size), size)
                    done, whole = (sum(v) for v in zip(*bars.values(), strict=True))
                progress(done / whole, f"Downloading {spec.place}: {done / 1e6:.0f} of {whole / 1e6:.0f} MB")

    return Meter
