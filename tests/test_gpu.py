"""What holds on a GPU: training there is training here, to rounding; a resume goes on; workers say where they computed.

Skipped without CUDA: no machine of the continuous integration has it. Run by hand on one that does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backend.analyses import registry
from backend.contract import ModelCard, Request
from backend.errors import Cancelled
from backend.jobs import worker
from backend.jobs.dask_driver import DaskDriver
from backend.jobs.engine import Engine
from backend.runs import layout
from backend.runs.folder import RunFolder
from backend.runs.train import train
from backend.settings import Settings
from backend.tables import unpack
from tests import tiny_models
from tests.recipe_kit import go_on, stop_at
from tests.test_jobs_inline import Ears
from tests.test_jobs_worker import payload

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

ATTENTION = {"d_model": 32, "n_heads": 4, "n_ctx": 32, "batch_size": 8}
STEPS = {"steps": 40, "log_every": 8, "monitor_every": 16, "n_checkpoints": 3, "seed": 1}
SMALL: dict[str, dict[str, Any]] = {
    "char_lm": {**ATTENTION, "n_layers": 2, "max_characters": 20_000, "warm_up": 4},
    "induction": ATTENTION,
    "linear_control": {"d_in": 12, "d_out": 3, "n_rows": 60, "batch_size": 8},
    "markov_icl": ATTENTION,
    "modular_addition": {"p": 23, "d_model": 64, "d_mlp": 128},
}  # fmt: skip


def trained(name: str, folder: Path, **more: Any) -> tuple[dict, RunFolder]:
    """Train a small run; return its last weights on the CPU and the folder."""
    train(name, {**SMALL[name], **STEPS, **more}, folder, False, go_on)
    return weights(folder, STEPS["steps"]), RunFolder(folder)


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(layout.file_of(folder, layout.CHECKPOINTS, step))


def apart(a: dict, b: dict) -> float:
    """Return the largest difference of two states, relative to the largest weight."""
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max() / b[k].abs().max().clamp(min=1e-12)) for k in a)


def curves(run: RunFolder) -> dict[tuple, float]:
    """Return {(step, metric, layer, head): value} of all that must not depend on the clock."""
    rows = run.read().rows
    rows = rows[rows.metric != "steps_per_second"].drop(columns="time").astype(object)
    return {tuple(row[:-1]): row[-1] for row in rows.where(rows.notna(), None).itertuples(index=False, name=None)}


@pytest.mark.parametrize("name", SMALL)
def test_a_gpu_trains_what_a_cpu_trains_in_float64(tmp_path: Path, name: str) -> None:
    """The same seed gives the same data and first weights on both; in float64 only the order of sums differs."""
    here, cpu = trained(name, tmp_path / "cpu", device="cpu", dtype="float64")
    there, gpu = trained(name, tmp_path / "gpu", device="cuda", dtype="float64")
    assert gpu.info()["params"]["device"] == "cuda"
    assert apart(there, here) < 1e-6
    mine, theirs = curves(cpu), curves(gpu)
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        assert theirs[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SMALL)
def test_it_learns_and_a_resume_goes_on_closely(tmp_path: Path, name: str, dtype: str) -> None:
    """Bit-equality is not promised on a GPU; rounding is what a second straight run differs by as well."""
    straight, run = trained(name, tmp_path / "straight", device="cuda", dtype=dtype)
    again, _ = trained(name, tmp_path / "again", device="cuda", dtype=dtype)
    parted = tmp_path / "parted"
    with pytest.raises(Cancelled):
        train(name, {**SMALL[name], **STEPS, "device": "cuda", "dtype": dtype}, parted, False, stop_at(21, 40))
    train(name, {}, parted, True, go_on)
    moved = apart(weights(tmp_path / "straight", 0), straight)
    resumed, repeated = apart(weights(parted, STEPS["steps"]), straight), apart(again, straight)
    print(f"{name} {dtype}: moved {moved:.2g}, a second run {repeated:.2g}, resumed {resumed:.2g}")
    assert resumed < 0.02 * moved and repeated < 0.02 * moved
    rows = run.read().rows
    loss = rows[rows.metric == ("train_loss" if name == "modular_addition" else "loss")]
    assert loss.value.iloc[-1] < loss.value.iloc[0] and straight[next(iter(straight))].dtype == torch.float32


def test_a_resume_on_the_other_device_goes_on(tmp_path: Path) -> None:
    """A run of a GPU may go on where there is none: weights, optimiser and random state travel."""
    there, _ = trained("induction", tmp_path / "gpu", device="cuda")
    parted = tmp_path / "parted"
    with pytest.raises(Cancelled):
        train("induction", {**SMALL["induction"], **STEPS, "device": "auto"}, parted, False, stop_at(21, 40))
    before = torch.cuda.is_available
    torch.cuda.is_available = lambda: False  # as on another machine: `auto` then means the CPU
    try:
        train("induction", {}, parted, True, go_on)
    finally:
        torch.cuda.is_available = before
    assert apart(weights(parted, 40), there) < 1e-3


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    tiny_models.native_run(tmp_path / "runs" / "tiny")
    return tiny_models.settings(tmp_path).model_copy(update={"device": "cuda"})


def test_analyses_on_a_gpu_are_those_of_a_cpu(settings: Settings) -> None:
    """Every analysis that takes the tiny model: the same table, and a provenance and a key that name the device."""
    told = {}
    for device in ("cuda", "cpu"):
        house = settings.model_copy(update={"device": device}).model_dump(mode="json")
        card = ModelCard(**worker.execute("open", {"spec": "run:tiny", "step": None}, house, go_on)["card"])
        for name in ("attention", "logit_lens", "head_scores"):
            result = worker.execute("analysis", payload(card, name), house, go_on)
            table = unpack(registry()[name], result.table.to_pandas(), result.arrays)
            told[name, device] = table, result.provenance, Request(**payload(card, name)["request"])
    for name in ("attention", "logit_lens", "head_scores"):
        (a, said, asked), (b, _, asked_here) = told[name, "cuda"], told[name, "cpu"]
        assert said["device"].startswith("cuda") and asked.device != asked_here.device
        assert list(a.columns) == list(b.columns) and len(a) == len(b)
        for column in a.select_dtypes("number"):
            assert a[column].to_numpy(float) == pytest.approx(b[column].to_numpy(float), abs=2e-3, nan_ok=True)


def test_a_worker_per_gpu_trains_and_analyses(settings: Settings, tmp_path: Path) -> None:
    """The engine's own cluster: one worker for each GPU, which computes there."""
    ears = Ears()
    engine = Engine(DaskDriver(settings.model_copy(update={"device": "auto"})), on_change=ears.change,
                    on_result=ears.result)  # fmt: skip
    try:
        opened = engine.wait(engine.submit("open", "o", "Open", {"spec": "run:tiny", "step": None}, "run:tiny").id, 200)
        assert opened.state == "done", opened.error
        card = ModelCard(**ears.results[opened.id]["card"])
        assert card.device.startswith("cuda") and len(engine.workers()) == torch.cuda.device_count()
        job = engine.wait(engine.submit("analysis", "a", "a", payload(card), card.fingerprint).id, 100)
        assert job.state == "done" and ears.results[job.id].provenance["device"].startswith("cuda"), job.error
        ask = {"recipe": "induction", "params": {**SMALL["induction"], **STEPS}, "run_dir": str(tmp_path / "r"),
               "resume": False}  # fmt: skip
        job = engine.wait(engine.submit("train", "t", "t", ask).id, 200)
        assert job.state == "done", job.error
        assert RunFolder(tmp_path / "r").state() == "finished"
    finally:
        engine.close()
