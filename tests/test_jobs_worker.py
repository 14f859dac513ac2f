"""What a worker computes, on real tiny models and runs: open, analysis, train."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.analyses import registry
from backend.contract import ModelCard, Prompt, Request
from backend.errors import BadInput, Cancelled, NotFound
from backend.jobs import worker
from backend.jobs.dask_driver import DaskDriver
from backend.jobs.engine import Engine
from backend.settings import Settings
from backend.tables import unpack
from tests import tiny_models
from tests.test_jobs_inline import Ears

SPEC = "run:tiny"


def quiet(fraction: float, words: str = "") -> None:
    assert 0.0 <= fraction <= 1.0


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("worker")
    tiny_models.native_run(folder / "runs" / "tiny")
    return tiny_models.settings(folder)


def run(settings: Settings, kind: str, payload: dict[str, Any]) -> Any:
    return worker.execute(kind, payload, settings.model_dump(mode="json"), quiet)


@pytest.fixture(scope="module")
def card(settings: Settings) -> ModelCard:
    return ModelCard(**run(settings, "open", {"spec": SPEC, "step": None})["card"])


def payload(card: ModelCard, analysis: str = "attention", **changes: Any) -> dict[str, Any]:
    asked = registry()[analysis]
    subject = Prompt(tokens=(3, 1, 4, 1, 5)) if asked.subject is Prompt else asked.subject()
    fields = {"analysis": analysis, "version": asked.version, "spec": card.spec, "step": card.step,
              "fingerprint": card.fingerprint, "dtype": card.dtype, "device": card.device,
              "subject": subject.model_dump(), "params": asked.params().model_dump()}
    return {"request": Request(**{**fields, **changes}).model_dump(mode="json")}


def test_open_answers_card_and_signature(settings: Settings, card: ModelCard) -> None:
    from backend.contract import parse_spec
    from backend.models.registry import locate

    assert card.n_layers == 2 and card.fingerprint
    answer = run(settings, "open", {"spec": SPEC, "step": 0})
    assert answer["signature"] == locate(parse_spec(SPEC, 0), settings).signature
    assert card.fingerprint in worker.held() and SPEC in worker.held()


def test_analysis_answers_a_table_and_its_provenance(settings: Settings, card: ModelCard) -> None:
    result = run(settings, "analysis", payload(card))
    table = unpack(registry()["attention"], result.table.to_pandas(), result.arrays)
    assert len(table) == card.n_layers * card.n_heads * 5
    assert table["pattern"].map(sum).to_numpy() == pytest.approx(1.0, abs=2e-3)
    said = result.provenance
    assert {"seconds", "load_seconds", "started", "finished", "device", "dtype", "host", "worker"} <= set(said)
    assert said["versions"]["torch"].startswith("2.") and said["versions"]["transformer_lens"].startswith("4.")
    assert said["dtype"] == "float64" and said["memory_bytes"] > 1e7 and "seed" not in said


def test_a_seed_is_told_and_the_global_generator_left_alone(settings: Settings, card: ModelCard) -> None:
    import torch

    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    said = run(settings, "analysis", payload(card, "head_scores")).provenance
    assert said["seed"] == registry()["head_scores"].params().seed
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("params", [{"seed": 5}, {}])
def test_what_an_analysis_draws_follows_its_seed_alone(settings: Settings, card: ModelCard, params: dict) -> None:
    """Also what torch draws for an analysis that names no seed: the same request, the same numbers."""
    import torch

    drawing = dataclasses.replace(registry()["attention"], compute=lambda *_: torch.rand(4))
    request = Request(**payload(card)["request"])
    model = worker._resident(SPEC, None, settings, quiet)

    def draw(ambient: int, params: dict) -> list[float]:
        torch.manual_seed(ambient)
        asked = request.model_copy(update={"params": params})
        return worker._compute(drawing, model, asked, drawing.params(), quiet).tolist()

    assert draw(1, params) == draw(2, params) != draw(1, {"seed": 6})


@pytest.mark.parametrize(("changes", "error", "words"), [
    ({"fingerprint": "f" * 32}, BadInput, "weights changed since they were opened"),
    ({"dtype": "float32"}, BadInput, "computes in float64"),
    ({"device": "cuda"}, BadInput, "computes on cpu, asked was cuda.*one kind"),
    ({"version": 99}, BadInput, "asked was 99"),
    ({"analysis": "astrology"}, NotFound, "does not know"), ({"params": {"nonsense": 1}}, BadInput, "nonsense"),
    ({"spec": "run:nowhere"}, NotFound, "nowhere")])
def test_what_does_not_fit_is_said(settings: Settings, card: ModelCard, changes: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        asked = payload(card)["request"]
        run(settings, "analysis", {"request": {**asked, **changes}})


def test_unknown_kind(settings: Settings) -> None:
    with pytest.raises(BadInput, match="analysis, open, train"):
        run(settings, "dance", {})


def test_weights_that_changed_since_are_noticed(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    house = tiny_models.settings(tmp_path)
    folder = tiny_models.native_run(tmp_path / "runs" / "moving")
    card = ModelCard(**run(house, "open", {"spec": "run:moving", "step": None})["card"])
    file = folder / "checkpoints" / "step_00000000.safetensors"
    save_file({name: 2 * t for name, t in load_file(file).items()}, file)
    with pytest.raises(BadInput, match="weights changed"):
        run(house, "analysis", payload(card))


def training(folder: Path, **params: Any) -> dict[str, Any]:
    small = {"steps": 6, "n_layers": 1, "d_model": 16, "n_heads": 2, "block_length": 4, "batch_size": 4, "d_vocab": 12}
    known = set(__import__("backend.runs.recipes", fromlist=["get"]).get("induction").params.model_fields)
    return {"recipe": "induction", "params": {k: v for k, v in {**small, **params}.items() if k in known},
            "run_dir": str(folder), "resume": False}


def test_train_then_stop_then_resume(settings: Settings, tmp_path: Path) -> None:
    ask, told = training(tmp_path / "r"), []

    def stop_half_way(fraction: float, words: str = "") -> None:
        told.append(fraction)
        if fraction > 0.4:
            raise Cancelled("This job", "it was cancelled", "Start it again")

    with pytest.raises(Cancelled):
        worker.execute("train", ask, settings.model_dump(mode="json"), stop_half_way)
    answer = run(settings, "train", {**ask, "resume": True})
    assert answer["run"] == "r" and len(answer["checkpoints"]) >= 2 and told


def test_resume_of_a_run_that_never_wrote_starts_it(settings: Settings, tmp_path: Path) -> None:
    """A worker killed before its first line leaves nothing to resume from."""
    answer = run(settings, "train", {**training(tmp_path / "fresh"), "resume": True})
    assert answer["checkpoints"]


def test_a_run_that_had_finished_when_its_worker_died_is_not_trained_again(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "done"
    ask = training(folder)
    first = run(settings, "train", ask)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert run(settings, "train", {**ask, "resume": True}) == first  # as the engine asks after a death
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    with pytest.raises(BadInput, match="it was started with 6"):
        run(settings, "train", {**training(folder, steps=9), "resume": True})


@pytest.fixture
def engine(settings: Settings) -> Iterator[tuple[Engine, Ears]]:
    ears = Ears()
    made = Engine(DaskDriver(settings.model_copy(update={"workers": 2})), on_change=ears.change, on_result=ears.result)
    yield made, ears
    made.close()


@pytest.mark.slow
def test_through_real_workers_the_model_stays_where_it_is(engine: tuple[Engine, Ears], card: ModelCard) -> None:
    house, ears = engine
    opened = house.wait(house.submit("open", "o", "Open", {"spec": SPEC, "step": None}, SPEC).id, 180)
    assert opened.state == "done", opened.error
    assert ears.results[opened.id]["card"]["fingerprint"] == card.fingerprint
    for name in ("attention", "logit_lens", "head_scores"):
        job = house.wait(house.submit("analysis", name, name, payload(card, name), card.fingerprint).id, 60)
        assert job.state == "done", job.error
        assert job.worker_pid == opened.worker_pid == ears.results[job.id].provenance["worker"]
    missing = house.submit("open", "m", "Open", {"spec": "run:nowhere", "step": None}, "run:nowhere")
    assert house.wait(missing.id, 180).error["error"] == "NotFound"
