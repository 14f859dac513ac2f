"""Tiny real models for the tests: random Hugging Face folders and a native run, opened by `open_model`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from backend.contract import parse_spec
from backend.settings import Settings

NATIVE = {"n_layers": 2, "d_model": 32, "d_head": 8, "n_heads": 4, "n_ctx": 24, "d_vocab": 50, "d_mlp": 64,
          "act_fn": "gelu", "normalization_type": "LN"}
SIZES = {"vocab_size": 61, "num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4,
         "max_position_embeddings": 40, "bos_token_id": 0, "eos_token_id": 0}


def settings(folder: Path, dtype: str = "float64") -> Settings:
    """Settings that keep everything inside the test's own folder."""
    return Settings(cache=folder / "cache", runs=folder / "runs", device="cpu", dtype=dtype)


def hugging_face(kind: str) -> Any:
    """A random model on the CPU whose attention weights can be asked for."""
    import torch
    import transformers

    torch.manual_seed(3)
    config, wide = {
        "gpt2": (transformers.GPT2Config(**SIZES), transformers.GPT2LMHeadModel),
        "neox": (transformers.GPTNeoXConfig(**SIZES, intermediate_size=64, rotary_pct=0.5),
                 transformers.GPTNeoXForCausalLM),
        "llama": (transformers.LlamaConfig(**SIZES, intermediate_size=64, num_key_value_heads=2),
                  transformers.LlamaForCausalLM),
    }[kind]
    config._attn_implementation = "eager"
    model = wide(config).eval()
    with torch.no_grad():  # random weights are near uniform: make them say something
        for parameter in model.parameters():
            parameter.mul_(4) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def native_run(folder: Path, config: dict[str, Any] = NATIVE) -> Path:
    """Write a run folder that holds one checkpoint of a random native model."""
    from safetensors.torch import save_file

    from backend.models import bridge

    (folder / "checkpoints").mkdir(parents=True)
    made = bridge.build_native(config, seed=1).state_dict()
    state = {name: (3 if t.ndim > 1 else 1) * t.contiguous() for name, t in made.items()}
    save_file(state, folder / "checkpoints" / "step_00000000.safetensors")
    (folder / "run.json").write_text(json.dumps({"model": {"kind": "native", "config": config}}))
    return folder


def opened(kind: str, folder: Path, dtype: str = "float64") -> Any:
    """Return the opened model: gpt2, neox, llama or native."""
    from backend.models.open import open_model

    if kind == "native":
        return open_model(parse_spec(f"run:{native_run(folder / 'runs' / 'tiny')}"), settings(folder, dtype))
    hugging_face(kind).save_pretrained(folder / kind)
    return open_model(parse_spec(f"dir:{folder / kind}"), settings(folder, dtype))


def quiet(fraction: float, words: str) -> None:
    """A progress that nobody reads; it checks the fraction."""
    assert 0.0 <= fraction <= 1.0 + 1e-9 and words
