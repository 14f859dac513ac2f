"""What a worker computes: kind "analysis", "open" or "train", each a pure function of its payload.

Loaded models stay in this process's resident cache; `held` tells the engine which, so that requests come here again.
Everything heavy is imported inside functions: importing this module loads no torch.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import socket
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from backend.contract import Analysis, Corpus, Problems, Progress, Request, Result, parse_spec, subject_from
from backend.errors import BadInput, NotFound, PhasescopeError
from backend.jobs.task import peak_memory
from backend.settings import Settings

LIBRARIES = ("torch", "transformers", "transformer_lens", "numpy")
LOADING = 0.3  # share of an analysis' progress that loading the model may fill
_used: Any = None  # the resident cache, once a job has asked it for a model


def execute(kind: str, payload: dict[str, Any], settings: dict[str, Any], progress: Progress) -> Any:
    """Compute a Result ("analysis"), {card, signature} ("open") or the training's record ("train").

    Raises BadInput for an unknown kind and whatever the computation raises.
    """
    kinds: dict[str, Callable[..., Any]] = {"analysis": _analysis, "open": _open, "train": _train}
    if kind not in kinds:
        raise BadInput(f"Job of kind {kind!r}", "no such kind", f"Use one of {', '.join(kinds)}")
    return kinds[kind](payload, Settings(**settings), progress)


def held() -> list[str]:
    """Return fingerprints and specifications of the models that are still resident here."""
    contents = _used.contents() if _used is not None else []
    return sorted({name for model in contents for name in (model["fingerprint"], model["spec"])})


# ---------------------------------------------------------------- the three kinds


def _open(payload: Mapping[str, Any], settings: Settings, progress: Progress) -> dict[str, Any]:
    from backend.models import registry

    spec = parse_spec(payload["spec"], payload.get("step"))
    signature = registry.locate(spec, settings).signature  # before reading: weights that change meanwhile are noticed
    model = _resident(payload["spec"], payload.get("step"), settings, _part(progress, 0.0, 0.9))
    progress(0.9, "Measuring what a call costs")
    return {"card": {**model.card.model_dump(mode="json"), "probe": _probe(model)}, "signature": signature}


def _probe(model: Any) -> dict[str, float]:
    """Return the probe, {} where the model cannot be measured: it can be asked all the same."""
    from backend.models import energy_model, probe

    try:
        return energy_model.probe(model) if model.card.energy else probe.probe(model)
    except (PhasescopeError, RuntimeError):
        return {}


def _train(payload: Mapping[str, Any], settings: Settings, progress: Progress) -> dict[str, Any]:
    from backend.runs.train import finished, train

    folder = Path(payload["run_dir"])
    resume = bool(payload.get("resume")) and (folder / "run.json").exists()  # killed before its first line: start anew
    if resume and (done := finished(payload["recipe"], payload["params"], folder)):
        return done  # the worker died between the run's last line and its answer
    extra = None if resume else payload.get("extra")  # run.json is written once
    return train(payload["recipe"], payload["params"], folder, resume, progress, extra)


def _analysis(payload: Mapping[str, Any], settings: Settings, progress: Progress) -> Result:
    from backend.tables import pack

    request = Request(**payload["request"])
    analysis, params = _declared(request)
    started, begin = datetime.now(UTC), time.perf_counter()
    model = _resident(request.spec, request.step, settings, _part(progress, 0.0, LOADING))
    _same_weights(request, model)
    _same_companions(request, params, settings)
    loaded = time.perf_counter()
    frame = _compute(analysis, model, request, params, _part(progress, LOADING, 1.0))
    progress(1.0, "packing the table")
    table, arrays = pack(analysis, frame)
    spent = {"seconds": time.perf_counter() - loaded, "load_seconds": loaded - begin, "started": started.isoformat()}
    return Result(table, arrays, _provenance(model, request, spent))


# ---------------------------------------------------------------- their parts


def _declared(request: Request) -> tuple[Analysis, Any]:
    from backend.analyses import registry

    known = registry()
    if request.analysis not in known:
        raise NotFound(f"Analysis {request.analysis}", "this worker does not know it", f"Known are {', '.join(known)}")
    analysis = known[request.analysis]
    if analysis.version != request.version:
        found = f"this worker has version {analysis.version}, asked was {request.version}"
        raise BadInput(f"Analysis {request.analysis}", found, "Restart the dashboard and its workers")
    try:
        return analysis, analysis.params(**request.params)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise BadInput(f"{analysis.title}: {field}={first['input']!r}", first["msg"], "Correct it") from None


def _resident(spec: str, step: int | None, settings: Settings, progress: Progress) -> Any:
    from backend.models.resident import resident_for

    global _used  # noqa: PLW0603 - one per process
    _used = resident_for(settings)
    return _used.get(parse_spec(spec, step), settings, progress)


def _part(progress: Progress, low: float, high: float) -> Progress:
    """Return a progress whose 0..1 is low..high of `progress`."""

    def report(fraction: float, words: str = "") -> None:
        progress(low + (high - low) * fraction, words)

    return report


def _same_weights(request: Request, model: Any) -> None:
    if model.card.fingerprint != request.fingerprint:
        found = "the weights changed since they were opened"
        raise BadInput(f"{request.analysis} on {request.spec}", found, "Open the model again")
    if model.card.dtype != request.dtype:
        found = f"this worker computes in {model.card.dtype}, asked was {request.dtype}"
        raise BadInput(f"{request.analysis} on {request.spec}", found, "Give the workers the dashboard's settings")
    here, asked = (device.partition(":")[0] for device in (model.card.device, request.device))
    if here != asked:  # its numbers would be kept under the key of the other kind
        found = f"this worker computes on {here}, asked was {asked}"
        raise BadInput(f"{request.analysis} on {request.spec}", found,
                       "Use workers of one kind, or set PHASESCOPE_DEVICE=cpu for all")


def _same_companions(request: Request, params: Any, settings: Settings) -> None:
    from backend.models import trained

    if trained.beside(params, request.spec, settings) != request.companions:
        names = ", ".join(run for run, _ in (*params.companions(), *params.siblings(request.spec)))
        raise BadInput(f"{request.analysis} with {names}", "it was trained again since it was asked for", "Ask again")


def _compute(analysis: Analysis, model: Any, request: Request, params: Any, progress: Progress) -> Any:
    """Run the analysis; torch's global generator is left as it was (grad mode is the analysis' own affair)."""
    import torch

    devices = list(range(torch.cuda.device_count())) if model.card.device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(request.params.get("seed", 0))
        return analysis.compute(model, _subject(model, request), params, progress)


def _subject(model: Any, request: Request) -> Any:
    """Return the subject as the analysis takes it: a corpus as rows of tokens, problems as matrices."""
    subject = subject_from(request.subject)
    if isinstance(subject, Problems):
        from backend.runs import energy_tasks

        return energy_tasks.matrices(model.card, subject)
    if not isinstance(subject, Corpus):
        return subject
    from backend.runs import corpora

    return corpora.rows_of(model.card, subject)


def _provenance(model: Any, request: Request, spent: dict[str, Any]) -> dict[str, Any]:
    seed = {"seed": request.params["seed"]} if "seed" in request.params else {}
    return {**spent, "finished": datetime.now(UTC).isoformat(), "device": model.card.device, "dtype": model.card.dtype,
            "versions": dict(versions()), "host": socket.gethostname(), "worker": os.getpid(),
            "memory_bytes": peak_memory(), **seed}


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions that a number may depend on."""
    known = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            known[name] = importlib.metadata.version(name.replace("_", "-"))
        except importlib.metadata.PackageNotFoundError:
            known[name] = "missing"
    return known
