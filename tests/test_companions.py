"""Something trained for a model, in a run folder of its own: read for that model, refused for another."""

import json

import pytest
import torch
from safetensors.torch import save_file

from backend.errors import Broken, NotFound, PhasescopeError, Unfit
from tests.tiny_models import opened


@pytest.fixture
def model(tmp_path):
    return opened("native", tmp_path)


def companion(model, name="lens", steps=(0, 40), **more):
    """Write a run folder whose checkpoint at step s holds s everywhere."""
    folder = model.settings.runs / name
    (folder / "checkpoints").mkdir(parents=True)
    about = {"kind": "tuned_lens", "spec": model.card.spec, "step": None, "fingerprint": model.card.fingerprint}
    (folder / "run.json").write_text(json.dumps({"name": name, "companion": {**about, **more}}))
    for step in steps:
        save_file({"A": torch.full((2, 3), float(step))}, folder / "checkpoints" / f"step_{step:08d}.safetensors")
    return folder


def test_the_last_checkpoint_or_the_one_asked_for(model):
    companion(model)
    record, tensors = model.companion("lens")
    assert record["companion"]["kind"] == "tuned_lens" and torch.equal(tensors["A"], torch.full((2, 3), 40.0))
    assert tensors["A"].device.type == model.card.device
    assert torch.equal(model.companion("lens", 0)[1]["A"], torch.zeros(2, 3))
    assert torch.equal(model.companion(str(model.settings.runs / "lens"), 40)[1]["A"], tensors["A"])  # by its path


def test_one_of_another_model_is_refused(model):
    companion(model, fingerprint="0" * 32, spec="run:other", step=7)
    with pytest.raises(Unfit, match="it was trained for run:other, step 7"):
        model.companion("lens")


@pytest.mark.parametrize(("name", "step", "error", "words"), [
    ("nobody", None, NotFound, "nobody"), ("lens", 3, NotFound, "Its checkpoints: 0, 40"),
    ("tiny", None, Unfit, "not trained for a model"), ("empty", None, NotFound, "no checkpoint yet"),
])  # fmt: skip
def test_what_is_not_there_is_named(model, name, step, error, words):
    companion(model)
    companion(model, "empty", steps=())
    with pytest.raises(error, match=words):
        model.companion(name, step)


def test_damaged_files_are_said(model):
    folder = companion(model)
    (folder / "checkpoints" / "step_00000040.safetensors").write_bytes(b"half")
    with pytest.raises(PhasescopeError, match="safetensors"):
        model.companion("lens")
    (folder / "run.json").write_text("{")
    with pytest.raises(PhasescopeError) as told:
        model.companion("lens")
    assert not isinstance(told.value, Unfit) or isinstance(told.value, Broken)
