"""Open any model: read its weights, build the bare module, measure it, fill its card."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from backend.contract import CAPABILITY_RULES, ModelCard, ModelSpec, Progress
from backend.errors import Unsupported
from backend.models import bridge, energy_model, fingerprints, hf, hub, legacy, nanogpt, registry, tracr, weights
from backend.models.fidelity import examine
from backend.models.model import LoadedModel
from backend.models.registry import Located
from backend.settings import Settings

ENERGIES = ("energy", "ired")
DOWNLOAD = 0.7  # share of an opening's progress that a download may fill


@dataclass
class Opened:
    """What a source hands over: the bare module on the CPU or device, and what it knows of it."""

    bare: nn.Module
    fingerprint: str
    tokenizer: dict[str, Any] = field(default_factory=lambda: {"kind": "ids"})
    notes: list[str] = field(default_factory=list)


def open_model(spec: ModelSpec, settings: Settings, progress: Progress | None = None) -> Any:
    """Open a model from any of the six sources, in the settings' dtype and on their device: a transformer
    (LoadedModel) or an energy model (EnergyModel).

    progress(fraction, words) may raise Cancelled. Raises NotFound, Unsupported or BadInput with one sentence.
    """
    tell, began = progress or (lambda fraction, words: None), time.perf_counter()
    located = registry.locate(spec, settings)
    if located.remote:
        located = registry.hub_folder(spec, hub.download(spec, lambda f, w: tell(DOWNLOAD * f, w)))
    tell(DOWNLOAD, f"Reading {located.source}")
    with weights.on_device(f"Model {str(spec)!r}"):
        if located.kind in ENERGIES:
            return _energy(located, settings, began)
        opened = SOURCES[located.kind](located, getattr(torch, settings.dtype))
        opened.bare.to(device(settings))  # not its dtype: that would round the rotary tables, which stay float32
        tell(0.9, "Comparing the hooked with the plain forward")
        model = LoadedModel(opened.bare)
        model.settings = settings
        model.card = _card(model, located, opened, began)
    tell(1.0, "Open")
    return model


def _energy(located: Located, settings: Settings, began: float) -> energy_model.EnergyModel:
    model = energy_model.open_energy(located, getattr(torch, settings.dtype), device(settings))
    model.settings = settings
    model.card.seconds = time.perf_counter() - began
    return model


def device(settings: Settings) -> str:
    """Return "cuda" or "cpu". Raises Unsupported where cuda is asked for and absent."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise Unsupported("PHASESCOPE_DEVICE=cuda", "no CUDA device here", "Set it to auto or cpu")
    return "cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu"


def _card(model: LoadedModel, located: Located, opened: Opened, began: float) -> ModelCard:
    measured, capabilities, notes = examine(model)
    named = model.parameters()
    parameters = list(named.values())
    sizes: dict[str, Any] = dict(model.sizes)
    return ModelCard(
        spec=str(located.spec), step=located.step, source=located.source, architecture=architecture(model.bare),
        **sizes, d_vocab_out=int(model.logits([[0]]).shape[-1]), n_params=sum(p.numel() for p in parameters),
        parameters={name: p.numel() for name, p in named.items()},
        dtype=str(parameters[0].dtype).removeprefix("torch."), device=parameters[0].device.type,
        memory_bytes=model.memory_bytes(), fingerprint=opened.fingerprint, capabilities=capabilities,
        rules=CAPABILITY_RULES,
        tokenizer=opened.tokenizer, fidelity=measured, notes=[*opened.notes, *notes],
        seconds=time.perf_counter() - began, training=located.extra.get("training", {}),
    )  # fmt: skip


def architecture(bare: nn.Module) -> str:
    """Return the architecture's name for people."""
    return "native (transformer-lens)" if isinstance(bare, bridge.NativeModel) else type(bare).__name__


def _native(located: Located, dtype: torch.dtype) -> Opened:
    print_ = fingerprints.fingerprint_safetensors(located.files, located.config)
    state = weights.read_safetensors(located.files)
    return Opened(native_from(located.config, state, dtype, str(located.spec)), print_, **_run_tokenizer(located))


def native_from(config: dict[str, Any], state: dict[str, torch.Tensor], dtype: torch.dtype, asked: str) -> nn.Module:
    """Build a NativeModel that holds this state dict; a `head.bias` (b_U) gets its place."""
    model = bridge.build_native(config)
    if "head.bias" in state:
        bridge.add_output_bias(model)
    weights.fit(model, state, asked)
    return model.to(dtype)


def _hf(located: Located, dtype: torch.dtype) -> Opened:
    print_ = fingerprints.fingerprint_safetensors(located.files, located.config)
    if located.spec.scheme == "run":
        state = weights.read_safetensors(located.files)
        built = hf.from_config(located.config, state, dtype, str(located.spec))
        return Opened(built, print_, **_run_tokenizer(located))
    model, notes = hf.load_folder(located.folder, located.config, dtype)
    tokenizer, more = hf.tokenizer(located.folder)
    return Opened(model, print_, tokenizer, [*notes, *more])


def _run_tokenizer(located: Located) -> dict[str, Any]:
    """Return the tokenizer that run.json names, if it does."""
    return {"tokenizer": located.extra["tokenizer"]} if "tokenizer" in located.extra else {}


def _nanogpt(located: Located, dtype: torch.dtype) -> Opened:
    if located.spec.scheme == "run":
        return _nanogpt_run(located, dtype)
    args, state = nanogpt.read(located.files[0])
    print_ = fingerprints.fingerprint_state_dict(state, nanogpt.identity(args))
    converted = nanogpt.hf_state(state, bool(args.get("bias", True)))
    bare = hf.from_config(nanogpt.hf_config(args), converted, dtype, str(located.spec))
    tokenizer, notes = nanogpt.tokenizer(located.extra.get("meta"), args["vocab_size"])
    return Opened(bare, print_, tokenizer, ["Computed as nanoGPT does: exact GELU", *notes])


def _nanogpt_run(located: Located, dtype: torch.dtype) -> Opened:
    """A checkpoint that nanoGPT's train.py gave to the Recorder; run.json holds its model_args."""
    args, asked = located.config, f"{located.source}"
    print_ = fingerprints.fingerprint_safetensors(located.files, located.config)
    state = nanogpt.clean(args, weights.read_safetensors(located.files), asked)
    converted = nanogpt.hf_state(state, bool(args.get("bias", True)))
    bare = hf.from_config(nanogpt.hf_config(args), converted, dtype, asked)
    return Opened(bare, print_, notes=["Computed as nanoGPT does: exact GELU"], **_run_tokenizer(located))


def _tl(located: Located, dtype: torch.dtype) -> Opened:
    asked = str(located.spec)
    config, state, notes = legacy.prepare(weights.read_state(located.files[0]), located.config, asked)
    model = bridge.build_native(config)
    if "head.bias" in state:
        bridge.add_output_bias(model)
    notes += legacy.zero_biases(model.state_dict(), state)
    weights.fit(model, state, asked)
    notes.append("No tokenizer: type token ids")
    return Opened(model.to(dtype), fingerprints.fingerprint_state_dict(state, config), notes=notes)


def _tracr(located: Located, dtype: torch.dtype) -> Opened:
    state = tracr.state(*tracr.read(located.files[0]))
    print_ = fingerprints.fingerprint_state_dict(state, located.config)
    return Opened(native_from(located.config, state, dtype, str(located.spec)), print_, located.extra["tokenizer"])


SOURCES: dict[str, Callable[[Located, torch.dtype], Opened]] = {
    "native": _native, "hf": _hf, "nanogpt": _nanogpt, "tl": _tl, "tracr": _tracr,
}  # fmt: skip
