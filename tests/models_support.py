"""Tiny models on disk for the tests of the models room: random weights, real formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from backend.contract import parse_spec
from backend.models.open import LoadedModel, open_model
from backend.settings import ROOT, Settings

torch.set_num_threads(1)
DATA = ROOT.parent / "shared" / "data"
V, T = 50, 24
NATIVE = {"n_layers": 2, "d_model": 32, "n_heads": 4, "d_head": 8, "d_vocab": 20, "n_ctx": 16, "attn_only": True,
          "act_fn": "relu", "normalization_type": "LN"}  # fmt: skip


def hf_config(name: str, **more: Any) -> Any:
    """Return the config of a two-layer model of one of the three families."""
    import transformers

    if name == "gpt2":
        return transformers.GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=V, n_positions=T, bos_token_id=0,
                                       eos_token_id=0, **more)  # fmt: skip
    both = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48,
            "vocab_size": V, "max_position_embeddings": T, **more}  # fmt: skip
    if name == "neox":
        return transformers.GPTNeoXConfig(**both)
    return transformers.LlamaConfig(**both, num_key_value_heads=2)


def hf_folder(path: Path, name: str, seed: int = 0, shard: str = "1GB", **more: Any) -> Path:
    """Save a random model; weights are larger than at initialisation, so that attention is not uniform."""
    import transformers

    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(hf_config(name, **more))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    model.save_pretrained(path, max_shard_size=shard)
    return path


def settings(path: Path, **more: Any) -> Settings:
    """Return settings whose folders lie under `path`."""
    return Settings(runs=path / "runs", cache=path / "cache", device="cpu", **more)


def opened(spec: str, path: Path = Path(), step: int | None = None, **more: Any) -> LoadedModel:
    """Open a model with test settings."""
    return open_model(parse_spec(spec, step), settings(path, **more))


def run_folder(path: Path, steps: tuple[int, ...] = (0, 10), config: dict[str, Any] | None = None) -> Path:
    """Write a run of a native model with a checkpoint per step (seeded by the step) and return its folder."""
    from safetensors.torch import save_file

    from backend.models.bridge import build_native

    (path / "checkpoints").mkdir(parents=True)
    config = config or NATIVE
    (path / "run.json").write_text(json.dumps({"model": {"kind": "native", "config": config}}))
    for step in steps:
        save_file(build_native(config, seed=step).state_dict(), path / "checkpoints" / f"step_{step:08d}.safetensors")
    return path


def ids(batch: int = 3, pos: int = 12, d_vocab: int = 20, seed: int = 1) -> torch.Tensor:
    """Return seeded token ids [batch, pos]."""
    return torch.randint(0, d_vocab, (batch, pos), generator=torch.Generator().manual_seed(seed))
