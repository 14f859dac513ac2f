"""Find a model's files without opening them. No torch: the app process imports this module.

A spec names a place; `locate` returns the files there, the config where it is JSON, and a signature that changes
whenever a file does. Runs are folders under `settings.runs`, then the shipped ones; the user's own win.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend import settings as house
from backend.contract import ModelSpec, canonical_hash
from backend.errors import BadInput, NotFound, Unsupported
from backend.models import hub, tracr

CHECKPOINT = re.compile(r"step_(\d+)\.safetensors$")
#: how a run.json may say what its weights belong to; a nanogpt config is the model_args of its train.py
KINDS = ("native", "hf", "nanogpt", "energy")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Located:
    """Where a model lies. `files` are its weights, `config` its JSON config ({} where it is inside the weights),
    `step` and `steps` those of a run; `remote` means it must be downloaded first."""

    spec: ModelSpec
    kind: str  # native | hf | nanogpt | tl | tracr | energy | ired
    folder: Path
    files: tuple[Path, ...]
    config: dict[str, Any]
    signature: str
    source: str
    step: int | None = None
    steps: tuple[int, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    remote: bool = False

    @property
    def config_signature(self) -> str:
        """A hash of all but the weights: checkpoints of one run share it."""
        return canonical_hash([self.kind, self.config, {k: str(v) for k, v in self.extra.items()}])


def locate(spec: ModelSpec, settings: house.Settings) -> Located:
    """Find the files of a spec. Raises NotFound, Unsupported or BadInput with one clear sentence."""
    finders = {"run": _run, "dir": _dir, "hub": _hub, "nanogpt": _nanogpt, "tl": _tl, "energy": _energy}
    return finders[spec.scheme](spec, settings)


def signature(files: Sequence[Path], *words: str) -> str:
    """Return a hash of names, sizes and modification times: cheap, and different after any rewrite."""
    parts = [f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files]
    return hashlib.sha256("\n".join([*parts, *words]).encode()).hexdigest()[:32]


def read_json(path: Path, asked: str) -> dict[str, Any]:
    """Read a JSON object. Raises NotFound without the file, BadInput where it is malformed."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(asked, f"it holds no {path.name}", f"Give a folder that holds {path.name}") from None
    except (ValueError, OSError) as error:
        raise BadInput(asked, f"{path.name} is malformed ({str(error)[:80]})", f"Correct {path.name}") from None
    if not isinstance(data, dict):
        raise BadInput(asked, f"{path.name} holds no JSON object", f"Correct {path.name}")
    return data


def _folder(place: str, asked: str) -> Path:
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise NotFound(asked, "no such folder" if not folder.exists() else "not a folder", "Check the path")
    return folder


# ---------------------------------------------------------------- runs


#: in the folder of runs: {"attached": [{"name", "path"}, ...]}; backend/runs/attached.py writes it
ATTACHED = "attached.json"


def attached_places(runs: Path) -> dict[str, Path]:
    """Return {name: path} of what the user attached; {} where the list is missing or malformed."""
    try:
        rows = json.loads((Path(runs) / ATTACHED).read_text(encoding="utf-8"))["attached"]
        return {str(r["name"]): Path(r["path"]) for r in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _attached_runs(settings: house.Settings) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, path in attached_places(settings.runs).items():
        if (path / "run.json").is_file():
            found.setdefault(name, path)
            continue
        for below in sorted(path.glob("*/run.json")):
            found.setdefault(below.parent.name, below.parent)
    return found


def known_runs(settings: house.Settings) -> dict[str, Path]:
    """Return {name: folder} of every run, the user's own before a shipped one of the same name."""
    found: dict[str, Path] = {}
    for root in (settings.runs, house.SHIPPED_RUNS):
        for path in sorted(Path(root).glob("*/run.json")):
            found.setdefault(path.parent.name, path.parent)
    return {**_attached_runs(settings), **found}


def run_folder(place: str, settings: house.Settings) -> Path:
    """Return the folder of a run given by name or by path. Raises NotFound that lists the known runs."""
    for root in (settings.runs, house.SHIPPED_RUNS):
        if (Path(root) / place / "run.json").is_file():
            return Path(root) / place
    if (attached := _attached_runs(settings).get(place)) is not None:
        return attached
    path = Path(place).expanduser()
    if path.is_dir():
        if (path / "run.json").is_file():
            return path
        raise NotFound(f"Run {place!r}", "the folder holds no run.json", "Give the folder of a training run")
    names = sorted(known_runs(settings))
    todo = f"Known runs: {', '.join(names[:12])}" if names else "There is no run yet: train one first"
    raise NotFound(f"Run {place!r}", "no such run", todo)


def checkpoints(folder: Path) -> dict[int, Path]:
    """Return {step: file} of a run's checkpoints, sorted by step."""
    files = (folder / "checkpoints").glob("step_*.safetensors")
    return dict(sorted((int(m[1]), p) for p in files if (m := CHECKPOINT.match(p.name))))


def _run(spec: ModelSpec, settings: house.Settings) -> Located:
    folder = run_folder(spec.place, settings)
    asked = f"Run {spec.place!r}"
    record = read_json(folder / "run.json", asked)
    model = record.get("model")
    if _is_dict(record.get("companion")):
        made = record["companion"]
        found = f"it holds a {str(made.get('kind')).replace('_', ' ')} for {made.get('spec')}, no model of its own"
        raise BadInput(asked, found, "Open that model, and name this run there")
    if not isinstance(model, dict) or (model.get("kind") not in KINDS) or not _is_dict(model.get("config")):
        found = 'run.json names no model {"kind": "native", "hf", "nanogpt" or "energy", "config": {...}}'
        raise BadInput(asked, found, "Correct run.json")
    files = checkpoints(folder)
    step = _step(spec, files)
    extra = {k: record[k] for k in ("tokenizer",) if isinstance(record.get(k), dict)}
    if record.get("recipe") and _is_dict(record.get("params")):
        extra["training"] = {"recipe": str(record["recipe"]), "params": record["params"]}
    words = json.dumps([model, extra], sort_keys=True)
    return Located(spec, model["kind"], folder, (files[step],), model["config"], signature([files[step]], words),
                   f"run {folder.name}, step {step}", step, tuple(files), extra)  # fmt: skip


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _step(spec: ModelSpec, files: dict[int, Path]) -> int:
    if not files:
        raise NotFound(f"Run {spec.place!r}", "it has no checkpoint yet", "Wait for the first checkpoint")
    if spec.step is None:
        return max(files)
    if spec.step not in files:
        near = sorted(sorted(files, key=lambda s: abs(s - spec.step))[:4])  # type: ignore[operator]
        todo = f"Nearest checkpoints: {', '.join(map(str, near))}"
        raise NotFound(f"Step {spec.step} of run {spec.place!r}", "no checkpoint at this step", todo)
    return spec.step


# ---------------------------------------------------------------- Hugging Face folders


def _dir(spec: ModelSpec, settings: house.Settings) -> Located:
    folder = _folder(spec.place, f"Folder {spec.place!r}")
    return hf_folder(spec, folder, f"folder {folder}")


def hf_folder(spec: ModelSpec, folder: Path, source: str, *words: str) -> Located:
    """Read what a Hugging Face folder holds: config.json and safetensors, whole or in shards."""
    asked = f"Folder {str(folder)!r}" if spec.scheme == "dir" else f"Model {str(spec)!r}"
    config = read_json(folder / "config.json", asked)
    if not config.get("model_type"):
        todo = f"Try tl:{spec.place}" if "n_layers" in config else "Give a Hugging Face model folder"
        raise Unsupported(asked, "config.json names no model_type", todo)
    files = _weights(folder, asked)
    return Located(spec, "hf", folder, files, config, signature([folder / "config.json", *files], *words), source)


def _weights(folder: Path, asked: str) -> tuple[Path, ...]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index, asked).get("weight_map", {}).values()))
        missing = [n for n in names if not (folder / n).is_file()]
        if missing:
            raise NotFound(asked, f"weights are missing: {missing[0]}", "Copy or download the missing files")
        return tuple(folder / n for n in names)
    files = tuple(sorted(folder.glob("*.safetensors")))
    if (folder / "model.safetensors").is_file():
        return (folder / "model.safetensors",)
    if not files:
        raise _no_weights(folder, asked)
    return files


def _no_weights(folder: Path, asked: str) -> BadInput:
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
    if pickled:
        todo = "Save it with save_pretrained(safe_serialization=True)"
        return Unsupported(asked, f"its weights are pickled ({pickled[0]}) and may hold code", todo)
    return NotFound(asked, "it holds no weights (*.safetensors)", "Copy or download the weights")


def _hub(spec: ModelSpec, settings: house.Settings) -> Located:
    folder = hub.cached(spec)
    if folder is None:
        return Located(spec, "hf", Path(), (), {}, "", f"hub {spec.place}", remote=True)
    return hub_folder(spec, folder)


def hub_folder(spec: ModelSpec, folder: Path) -> Located:
    """Read a downloaded snapshot; its folder is named by the commit."""
    return hf_folder(spec, folder, f"hub {spec.place}, commit {folder.name[:12]}", folder.name)


# ---------------------------------------------------------------- nanoGPT and transformer-lens


def _nanogpt(spec: ModelSpec, settings: house.Settings) -> Located:
    path = Path(spec.place).expanduser()
    file = path / "ckpt.pt" if path.is_dir() else path
    if not file.is_file():
        found = "it holds no ckpt.pt" if path.is_dir() else "no such file"
        todo = "Give ckpt.pt or the folder that holds it"
        raise NotFound(f"nanoGPT checkpoint {spec.place!r}", found, todo)
    meta = [file.parent / n for n in ("meta.json", "meta.pkl") if (file.parent / n).is_file()][:1]
    return Located(spec, "nanogpt", file.parent, (file,), {}, signature([file, *meta]), f"nanoGPT {file}",
                   extra={"meta": meta[0]} if meta else {})  # fmt: skip


def _tl(spec: ModelSpec, settings: house.Settings) -> Located:
    path, asked = Path(spec.place).expanduser(), f"transformer-lens checkpoint {spec.place!r}"
    if not path.exists() and spec.place in (known := tracr.programs()):
        return _program(spec, known[spec.place])
    if not path.exists():
        raise NotFound(asked, "no such file or folder", f"Check the path, or name one of {', '.join(known)}")
    file = _tl_weights(path, asked) if path.is_dir() else path
    beside = [file.with_suffix(".json"), *(file.parent / n for n in ("config.json", "cfg.json"))]
    for candidate in dict.fromkeys(beside):
        if candidate.is_file() and "n_layers" in (config := read_json(candidate, asked)):
            return Located(spec, "tl", file.parent, (file,), config, signature([file, candidate]), f"file {file}")
    return Located(spec, "tl", file.parent, (file,), {}, signature([file]), f"file {file}")


def _program(spec: ModelSpec, file: Path) -> Located:
    arrays, meta = tracr.read(file)
    source = f"program {meta['program']}, compiled by tracr"
    config = tracr.config(arrays, meta)
    return Located(spec, "tracr", file.parent, (file,), config, signature([file]), source, extra=tracr.about(meta))


def _tl_weights(folder: Path, asked: str) -> Path:
    for pattern in ("*.safetensors", "*.pt", "*.pth"):
        files = sorted(folder.glob(pattern))
        if len(files) > 1:
            raise BadInput(asked, f"it holds {len(files)} files {pattern}", "Name the file")
        if files:
            return files[0]
    raise NotFound(asked, "it holds no weights (*.safetensors, *.pt, *.pth)", "Give the file of the state dict")


# ---------------------------------------------------------------- energy models of the official layout


def _energy(spec: ModelSpec, settings: house.Settings) -> Located:
    path, asked = Path(spec.place).expanduser(), f"Energy model {spec.place!r}"
    if not path.exists():
        raise NotFound(asked, "no such file or folder", "Give model.pt of IRED's trainer, or safetensors")
    file = _tl_weights(path, asked) if path.is_dir() else path
    beside = file.with_suffix(".json")
    config = read_json(beside, asked) if beside.is_file() else {}
    files = [file, beside] if config else [file]
    return Located(spec, "ired", file.parent, (file,), config, signature(files), f"file {file}")
