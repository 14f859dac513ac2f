"""Hugging Face folders: shards, tokenizers, and one clear sentence for everything that does not fit."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.errors import BadInput, NotFound, PhasescopeError, Unsupported
from backend.models import tokens
from tests.models_support import hf_config, hf_folder, ids, opened, run_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return hf_folder(tmp_path / "llama", "llama")


def edit(folder: Path, **changes: object) -> None:
    """Change fields of config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def refused(folder: Path, kind: type[PhasescopeError], words: str) -> None:
    """Assert that opening fails with this class and these words, on one line."""
    with pytest.raises(kind, match=words) as caught:
        opened(f"dir:{folder}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_sharded_folder_is_the_same_model(tmp_path: Path) -> None:
    whole = opened(f"dir:{hf_folder(tmp_path / 'a', 'gpt2')}")
    parts = hf_folder(tmp_path / "b", "gpt2", shard="20KB")
    assert len(list(parts.glob("*.safetensors"))) > 2
    split = opened(f"dir:{parts}")
    assert torch.equal(whole.logits(ids()), split.logits(ids()))
    assert whole.card.fingerprint == split.card.fingerprint
    next(parts.glob("model-00002*")).unlink()
    refused(parts, NotFound, "weights are missing: model-00002")


def test_places_that_hold_no_model(tmp_path: Path, folder: Path) -> None:
    refused(tmp_path / "nowhere", NotFound, "no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", NotFound, r"no config\.json")
    (folder / "model.safetensors").unlink()
    refused(folder, NotFound, "no weights")
    (folder / "config.json").write_text("{'a'")
    refused(folder, BadInput, r"config\.json is malformed")
    (folder / "config.json").write_text("[]")
    refused(folder, BadInput, "no JSON object")
    (folder / "config.json").write_text('{"n_layers": 2}')
    refused(folder, Unsupported, "Try tl:")


def test_pickled_weights_are_refused_unread(folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.mkdir, (folder / "sprung",)

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    refused(folder, Unsupported, r"pickled \(pytorch_model\.bin\) and may hold code")
    assert not (folder / "sprung").exists()


def test_damaged_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for part in (whole[:-100], whole[:50], b"", b"\xff" * 100):
        file.write_bytes(part)
        refused(folder, BadInput, "truncated")


def test_weights_that_do_not_fit_the_config(folder: Path) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    edit(folder, intermediate_size=64)
    refused(folder, BadInput, r"mlp\.down_proj\.weight is \[32, 48\] where the config says \[32, 64\]")
    edit(folder, intermediate_size=48)
    name = "model.layers.1.self_attn.q_proj.weight"
    save_file({k: v for k, v in state.items() if k != name}, file, metadata={"format": "pt"})
    refused(folder, BadInput, "q_proj.weight is missing")
    save_file({**state, "left.over": torch.ones(2)}, file, metadata={"format": "pt"})
    assert any("not used (left.over" in n for n in opened(f"dir:{folder}").card.notes)


def test_architectures_that_cannot_be_read(folder: Path) -> None:
    edit(folder, model_type="t5", architectures=["T5ForConditionalGeneration"])
    refused(folder, Unsupported, "T5ForConditionalGeneration")
    edit(folder, model_type="mine", architectures=["MineForCausalLM"], auto_map={"AutoModelForCausalLM": "m.Mine"})
    refused(folder, Unsupported, "MineForCausalLM needs code")
    edit(folder, model_type="llama", num_attention_heads=5)
    refused(folder, BadInput, "its config cannot be built .*attention heads")


def test_an_architecture_without_hooks_names_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from backend.models import bridge

    monkeypatch.setattr(bridge, "build_bridge_from_module", lambda *a, **k: (_ for _ in ()).throw(KeyError("adapter")))
    refused(folder, Unsupported, "LlamaForCausalLM has no hooks here")


def test_a_fast_tokenizer_travels_in_the_card(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    card = opened(f"dir:{folder}").card
    assert tokens.tokenizer_from(card.tokenizer).encode("b a") == [1, 0]
    (folder / "tokenizer.json").write_text("{")
    card = opened(f"dir:{folder}").card
    assert card.tokenizer == {"kind": "ids"} and any("malformed" in n for n in card.notes)


def test_a_slow_tokenizer_is_converted(folder: Path) -> None:
    from tokenizers import pre_tokenizers

    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    (folder / "vocab.json").write_text(json.dumps({**vocab, "<|endoftext|>": len(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    card = opened(f"dir:{folder}").card
    assert card.tokenizer["kind"] == "hf", card.notes
    made = tokens.tokenizer_from(card.tokenizer)
    assert made.labels(made.encode("a b")) == ["a", "·", "b"]


def test_no_tokenizer_is_a_note_and_no_error(folder: Path) -> None:
    card = opened(f"dir:{folder}").card
    assert card.tokenizer == {"kind": "ids"} and "No tokenizer beside the weights: type token ids" in card.notes


def test_a_run_may_hold_a_hugging_face_model(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "gpt2", "gpt2")
    run = run_folder(tmp_path / "run", steps=())
    config = json.loads((folder / "config.json").read_text())
    (run / "run.json").write_text(json.dumps({"model": {"kind": "hf", "config": config},
                                              "tokenizer": {"kind": "chars", "symbols": ["x", "y"]}}))  # fmt: skip
    save_file(load_file(folder / "model.safetensors"), run / "checkpoints" / "step_00000003.safetensors")
    model = opened(f"run:{run}")
    assert torch.equal(model.logits(ids()), opened(f"dir:{folder}").logits(ids()))
    assert model.card.step == 3 and model.card.tokenizer["symbols"] == ["x", "y"]


def test_a_run_with_weights_that_do_not_fit(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    file = run / "checkpoints" / "step_00000010.safetensors"
    state = load_file(file)
    save_file({**state, "head.weight": torch.ones(3, 32)}, file)
    with pytest.raises(BadInput, match=r"head\.weight is \[3, 32\] where the config says \[20, 32\]"):
        opened(f"run:{run}")
    save_file({**state, "head.bias": torch.full((20,), 2.0)}, file)
    biased, plain = opened(f"run:{run}"), opened(f"run:{run}", step=0)
    assert torch.allclose(biased.bare.head.bias, torch.tensor(2.0)) and plain.bare.head.bias is None
    assert biased.card.fidelity["max_abs_log_prob"] < 1e-4
    (run / "run.json").write_text(json.dumps({"model": {"kind": "native", "config": {"d_modle": 3}}}))
    with pytest.raises(BadInput, match="unknown field 'd_modle'"):
        opened(f"run:{run}")


def test_attention_is_eager_so_that_patterns_exist(folder: Path) -> None:
    assert opened(f"dir:{folder}").bare.config._attn_implementation == "eager"
    assert hf_config("llama").num_key_value_heads == 2
