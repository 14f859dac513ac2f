"""What was trained for a model is keyed by what it holds: trained again under its name it is asked anew."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from backend import Backend
from backend.contract import Corpus, Prompt, Request, Weights
from backend.errors import BadInput, NotFound
from backend.jobs import worker
from tests.lens_kit import lens_run
from tests.sae_kit import sae_run
from tests.test_facade import card_of, computed
from tests.tiny_models import opened, settings

PROMPT = Prompt(tokens=(1, 2, 3))
CORPUS = Corpus(source="random", rows=4, length=8)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("companions")


@pytest.fixture(scope="module")
def model(place: Path):
    return opened("native", place, "float32")


@pytest.fixture(scope="module")
def house(place: Path, model) -> Iterator[Backend]:
    with closing(Backend(settings(place, "float32"), inline=True)) as made:
        yield made


def again(place: Path, model, seed: int, **more) -> None:
    """Delete the SAE named `mine` and train it again."""
    shutil.rmtree(place / "runs" / "mine", ignore_errors=True)
    sae_run(place / "runs" / "mine", model, seed, **more)


def test_a_run_trained_again_under_its_name_is_asked_anew(house, place, model):
    card, given = card_of(house, "run:tiny"), {"sae": "mine"}
    again(place, model, 0)
    first = computed(house, "sae_features", card, CORPUS, params=given)
    again(place, model, 1)
    assert house.kept("sae_features", card, CORPUS, given) is None, "the old numbers are another autoencoder's"
    second = computed(house, "sae_features", card, CORPUS, params=given)
    assert first != second and not house.table(first)["tops"].equals(house.table(second)["tops"])
    again(place, model, 0)
    assert house.kept("sae_features", card, CORPUS, given) == first, "the same tensors, the same key"
    again(place, model, 0, k=3)
    assert house.kept("sae_features", card, CORPUS, given) is None, "the same tensors used otherwise"


@pytest.mark.parametrize(("analysis", "subject", "given"), [
    ("sae_agreement", Weights(), {"a": "mine", "b": "mine"}),
    ("intervene", PROMPT, {"edits": "add L0.resid_post 2 feature mine 3"}),
])  # fmt: skip
def test_everything_that_names_one_moves_with_it(analysis, subject, given, house, place, model):
    card, keys = card_of(house, "run:tiny"), []
    for seed in (0, 1):
        again(place, model, seed)
        keys.append(house.request(analysis, card, subject, given).key)
    assert keys[0] != keys[1]


def test_a_tuned_lens_too(house, place, model):
    card, keys = card_of(house, "run:tiny"), []
    for scale in (0.1, 0.2):
        shutil.rmtree(place / "runs" / "lens", ignore_errors=True)
        lens_run(place / "runs" / "lens", model, scale)
        keys += [house.request(name, card, subject, {"lens": "lens"}).key
                 for name, subject in (("tuned_lens", PROMPT), ("tuned_lens_quality", CORPUS))]  # fmt: skip
    assert len(set(keys)) == 4


def test_another_model_of_the_same_shape_too(house, place, model):
    card, given, keys = card_of(house, "run:tiny"), {"other": "second"}, []
    for factor in (1.0, 2.0, 1.0):
        shutil.rmtree(place / "runs" / "second", ignore_errors=True)
        shutil.copytree(place / "runs" / "tiny", place / "runs" / "second")
        file = place / "runs" / "second" / "checkpoints" / "step_00000000.safetensors"
        save_file({name: factor * t for name, t in load_file(file).items()}, file)
        keys.append(house.request("mode_connectivity", card, CORPUS, given).key)
    assert keys[0] == keys[2] != keys[1]
    itself = house.request("mode_connectivity", card, CORPUS, {})
    assert itself.companions == (card["fingerprint"],), "empty is the model's own run, at step 0"
    with pytest.raises(NotFound, match="no such run"):
        house.request("mode_connectivity", card, CORPUS, {"other": "nobody"})
    with pytest.raises(BadInput, match="no model of its own"):
        again(place, model, 0)
        house.request("mode_connectivity", card, CORPUS, {"other": "mine"})


def test_one_that_is_not_there_is_said_before_a_job_starts(house, place, model):
    card, jobs = card_of(house, "run:tiny"), len(house.jobs())
    with pytest.raises(NotFound, match="nobody"):
        house.ask("sae_features", card, CORPUS, {"sae": "nobody"})
    again(place, model, 0)
    with pytest.raises(NotFound, match="Its checkpoints: 0"):
        house.ask("sae_features", card, CORPUS, {"sae": "mine", "sae_step": 7})
    record = json.loads((place / "runs" / "mine" / "run.json").read_text())
    record["params"]["steps"] = 40  # it still trains: the last of its training is not there
    (place / "runs" / "mine" / "run.json").write_text(json.dumps(record))
    with pytest.raises(NotFound, match="no checkpoint at step 40"):
        house.ask("sae_features", card, CORPUS, {"sae": "mine"})
    assert len(house.jobs()) == jobs


def test_a_worker_refuses_one_that_was_trained_again_while_it_waited(house, place, model):
    again(place, model, 0)
    card = card_of(house, "run:tiny")
    request: Request = house.request("sae_agreement", card, Weights(), {"a": "mine", "b": "mine"})
    again(place, model, 1)
    with pytest.raises(BadInput, match="trained again since it was asked for"):
        worker.execute("analysis", {"request": request.model_dump(mode="json"), "card": card},
                   house.settings.model_dump(mode="json"), lambda fraction, words="": None)  # fmt: skip


def test_what_names_none_keeps_its_key(house):
    request = house.request("logit_lens", card_of(house, "run:tiny"), PROMPT, {})
    assert "companions" not in request.identity() and request.companions == ()


def test_a_file_that_only_moved_in_time_keeps_its_key(house, place, model):
    again(place, model, 0)
    card, given = card_of(house, "run:tiny"), {"sae": "mine"}
    before = house.request("sae_features", card, CORPUS, given).key
    os.utime(place / "runs" / "mine" / "checkpoints" / "step_00000000.safetensors", (1, 1))
    assert house.request("sae_features", card, CORPUS, given).key == before
