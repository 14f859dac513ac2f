"""The command line without a dashboard: what it prints, writes and answers, and one sentence for every bad input."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from backend import analyses
from backend.__main__ import main, parser
from backend.export import from_arrow
from backend.runs.recorder import Recorder
from tests.jobs_targets import until
from tests.models_support import hf_folder, run_folder
from tests.test_facade import small

ROOT = Path(__file__).resolve().parent.parent
LENS = ["run", "logit_lens", "--model", "run:toy", "--tokens", "1,2,3,1,2"]
ATTENTION = ["run", "attention", "--model", "run:toy", "--tokens", "1,2,3,1,2"]
SMALL = [word for name, value in small().items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of a run, a run that writes characters, and a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("cli")
    run_folder(folder / "runs" / "toy")
    chars = run_folder(folder / "runs" / "chars", steps=(5,))
    record = json.loads((chars / "run.json").read_text())
    (chars / "run.json").write_text(json.dumps({**record, "tokenizer": {"kind": "chars", "symbols": list("abcd")}}))
    hf_folder(folder / "gpt2", "gpt2")
    return folder


@pytest.fixture(autouse=True)
def environment(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for name, value in variables(place).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def variables(place: Path) -> dict[str, str]:
    """The environment of a house that lies under `place` and has no network."""
    folders = {"PHASESCOPE_CACHE": "cache", "PHASESCOPE_RUNS": "runs", "HF_HUB_CACHE": "hub"}
    rest = {"PHASESCOPE_DEVICE": "cpu", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return {**{name: str(place / folder) for name, folder in folders.items()}, **rest}


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], words: str, code: int = 2) -> str:
    """Assert that a command ends with this code and says one sentence on stderr, nothing on stdout."""
    capsys.readouterr()
    assert main(argv) == code, argv
    told = capsys.readouterr()
    assert told.out == "", argv
    assert re.search(words, told.err), f"{words!r} is not in {told.err!r}"
    assert told.err.count("\n") == 1 and "Traceback" not in told.err, told.err
    return told.err


def answered(capsys: pytest.CaptureFixture[str], argv: list[str]) -> Any:
    """Run with --json and return what it printed."""
    capsys.readouterr()
    code = main([*argv, "--json"])
    told = capsys.readouterr()
    assert code == 0, told.err
    return json.loads(told.out)


# ---------------------------------------------------------------- what it knows


def test_list_and_describe(capsys: pytest.CaptureFixture[str]) -> None:
    rows = answered(capsys, ["list"])
    assert {r["name"] for r in rows if r["kind"] == "analysis"} == set(analyses.registry())
    assert "induction" in {r["name"] for r in rows if r["kind"] == "recipe"} and all(r["asks"] for r in rows)
    for name, one in analyses.registry().items():
        assert answered(capsys, ["describe", name]) == json.loads(json.dumps(one.schema()))
    assert answered(capsys, ["describe", "induction"])["params"]["properties"]["steps"]["maximum"] == 100_000
    assert main(["list"]) == 0 and "logit_lens" in capsys.readouterr().out
    refused(capsys, ["describe", "nobody"], "Known: .*attention, .*head_scores")


def test_a_dry_run_tells_the_price_and_computes_nothing(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    asked = ["run", "attention", "--model", "run:toy", "--tokens", "5,6,7,8,9", "--dry-run"]
    before = sum(j["kind"] == "analysis" for j in answered(capsys, ["jobs"]))
    plan = answered(capsys, asked)[0]
    assert plan["state"] == "planned" and plan["basis"] == "probe" and plan["seconds"] > 0 and not plan["refused"]
    assert (plan["calls"], plan["tokens"]) == (1, 5) and 0 < plan["memory_bytes"] < plan["room_bytes"]
    assert main(asked) == 0 and "1 calls of the model on 5 tokens (from probe)" in capsys.readouterr().out
    assert sum(j["kind"] == "analysis" for j in answered(capsys, ["jobs"])) == before


def test_models_jobs_doctor(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    answered(capsys, LENS)
    found = answered(capsys, ["models"])
    assert {"run:toy", "run:chars"} <= {r["spec"] for r in found["runs"]}
    assert "run:toy" in {m["spec"] for m in found["opened"]}
    jobs = answered(capsys, ["jobs"])
    assert {j["kind"] for j in jobs} >= {"open", "analysis"} and {j["state"] for j in jobs} <= {"done", "failed"}
    doctor = answered(capsys, ["doctor"])
    assert doctor["through"] == "the cache directly" and doctor["settings"]["cache"] == str(place / "cache")
    assert doctor["versions"]["torch"] == torch.__version__.split("+")[0] or doctor["versions"]["torch"]
    assert doctor["health"]["ok"] and len(doctor["workers"]) == 1 and doctor["devices"]
    for command in ("models", "jobs", "doctor"):
        assert main([command]) == 0 and capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["run"], ["train"], ["run", "attention"], ["run", "logit_lens"], ["jobs"],
                                  ["train", "induction"], ["describe"], ["doctor"]], ids=" ".join)  # fmt: skip
def test_help_of_every_level(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*argv, "--help"])
    told = capsys.readouterr().out
    assert left.value.code == 0 and "usage: python -m backend" in told
    if argv == ["run", "logit_lens"]:
        assert "--top-k" in told and "most likely tokens kept" in told and "nostalgebraist" in told


@pytest.mark.parametrize("argv", [[], ["fly"], ["run", "fly"], ["run", "attention"], ["train", "fly"], ["list", "--x"],
                                  ["run", "attention", "--model"]], ids=" ".join)  # fmt: skip
def test_usage_errors_end_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(argv)
    assert left.value.code == 2 and "usage:" in capsys.readouterr().err


def test_a_param_may_have_the_name_of_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new analysis file must not break the command line whatever its params are called."""
    from pydantic import Field

    from backend.contract import Params

    class Odd(Params):
        step: int = Field(1, ge=0, le=9, description="a step of something else")
        text: str = Field("", max_length=9, description="not the prompt")

    monkeypatch.setattr(analyses.registry()["head_scores"], "params", Odd)
    args = parser().parse_args(["run", "head_scores", "--model", "run:toy", "--param-step", "3", "--step", "10"])
    assert args.step == "10" and vars(args)["param:step"] == "3"


# ---------------------------------------------------------------- run


def test_run_computes_once_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*LENS, "--top-k", "4"]
    assert main(argv) == 0
    first = capsys.readouterr()
    assert main([*LENS, "--top_k", "4"]) == 0
    second = capsys.readouterr()
    key, how, seconds, unit = re.fullmatch(r"(\w{32})  (computed)  ([\d.e-]+) (s)(?:  step \d+)?\n", first.err).groups()
    assert re.fullmatch(rf"{key}  cache hit  [\d.e-]+ s  step 10\n", second.err) and first.out == second.out
    head = first.out.splitlines()[0].split()
    assert head == [*[a.name for a in analyses.registry()["logit_lens"].axes],
                    *[v.name for v in analyses.registry()["logit_lens"].values]], "no column is hidden"  # fmt: skip
    assert len(first.out.splitlines()) == 1 + 3 * 5 * 4


def test_long_tables_are_cut_and_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LENS, "--top-k", "20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 200 + 1 and lines[-1] == "200 of 300 rows; --out FILE writes all"
    assert main(ATTENTION) == 0
    assert "array of 5" in capsys.readouterr().out


def read(path: Path) -> pd.DataFrame:
    """Read a written table by its ending; arrays as numpy."""
    if path.suffix == ".arrow":
        return from_arrow(path.read_bytes())
    frame = {".parquet": pd.read_parquet, ".csv": pd.read_csv, ".json": pd.read_json}[path.suffix](path)
    if path.suffix == ".csv" and "pattern" in frame:
        frame["pattern"] = frame["pattern"].map(json.loads)
    return frame


@pytest.mark.parametrize("form", ["parquet", "csv", "json", "arrow"])
def test_run_writes_each_format(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lens, attention = tmp_path / f"lens.{form}", tmp_path / f"attention.{form}"
    assert main([*LENS, "--out", str(lens)]) == 0 and f"150 rows to {lens}" in capsys.readouterr().out
    assert {"layer", "pos", "rank", "token_id", "log_prob"} <= set(read(lens).columns)
    told = answered(capsys, [*ATTENTION, "--out", str(attention)])
    assert told["rows"] == 40 and "table" not in told
    found = read(attention)
    assert {"layer", "head", "query_pos", "pattern"} <= set(found.columns)
    blocks = np.stack([np.asarray(v, dtype=float) for v in found["pattern"]])
    assert blocks.shape == (40, 5) and np.allclose(blocks.sum(1), 1, atol=2e-3)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([lens.name, attention.name])


def test_json_output_holds_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    told = answered(capsys, [*LENS, "--top-k", "2"])
    assert len(told["table"]) == told["rows"] == 30 and told["results"][0]["how"] in ("computed", "cache hit")
    assert answered(capsys, ["run", "head_scores", "--model", "run:toy", "--rows", "2"])["rows"] == 8


def test_steps(capsys: pytest.CaptureFixture[str]) -> None:
    keys = {step: answered(capsys, [*LENS, "--step", step])["results"][0]["key"] for step in ("0", "10")}
    assert keys["0"] != keys["10"] == answered(capsys, LENS)["results"][0]["key"], "without a step: the last"
    swept = answered(capsys, [*LENS, "--step", "all"])
    assert [r["key"] for r in swept["results"]] == list(keys.values())
    assert {r["step"] for r in swept["table"]} == {0, 10}
    assert {r["how"] for r in swept["results"]} == {"cache hit"}
    refused(capsys, [*LENS, "--step", "7"], "Nearest checkpoints: 0, 10")
    for step in ("one", "-1", "1.5", "²", "9" * 30, ""):
        refused(capsys, [*LENS, f"--step={step}"], "not a whole number.*Give a step of the run, or `all`")


def test_text_and_tokens_are_one_request(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["run", "logit_lens", "--model", "run:chars"]
    assert (answered(capsys, [*base, "--text", "abca"])["results"][0]["key"]
            == answered(capsys, [*base, "--tokens", "0,1,2,0"])["results"][0]["key"])  # fmt: skip


def test_a_path_is_meant_from_here(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    near = answered(capsys, ["run", "attention", "--model", "dir:gpt2", "--tokens", "1,2"])
    far = answered(capsys, ["run", "attention", "--model", f"dir:{place / 'gpt2'}", "--tokens", "1,2"])
    assert near["results"][0]["key"] == far["results"][0]["key"] and far["results"][0]["how"] == "cache hit"
    assert answered(capsys, ["run", "attention", "--model", "run:./runs/toy", "--tokens", "1,2"])["rows"]
    assert f"dir:{place / 'gpt2'}" in {m["spec"] for m in answered(capsys, ["models"])["opened"]}
    assert not any(m["spec"] == "dir:gpt2" for m in answered(capsys, ["models"])["opened"])


# ---------------------------------------------------------------- bad input


class Evil:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("sprung",)


def bad_models(place: Path) -> list[tuple[str, str]]:
    """Return (spec, words of the sentence) of every model that cannot be opened."""
    bad = place / "bad"
    hf_folder(bad / "short", "gpt2")
    file = bad / "short" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])
    hf_folder(bad / "misfit", "gpt2")
    config = json.loads((bad / "misfit" / "config.json").read_text())
    (bad / "misfit" / "config.json").write_text(json.dumps({**config, "n_embd": 64}))
    hf_folder(bad / "pickled", "gpt2")
    (bad / "pickled" / "model.safetensors").rename(bad / "pickled" / "pytorch_model.bin")
    hf_folder(bad / "t5", "gpt2")
    (bad / "t5" / "config.json").write_text(json.dumps({"model_type": "t5", "architectures": ["T5"]}))
    hf_folder(bad / "hole", "gpt2")
    state = load_file(bad / "hole" / "model.safetensors")
    state.pop(next(n for n in state if "c_attn.weight" in n))
    save_file(state, bad / "hole" / "model.safetensors", metadata={"format": "pt"})
    (bad / "empty").mkdir()
    (bad / "evil.pt").write_bytes(pickle.dumps({"model": Evil()}))
    torch.save({"model": Evil(), "model_args": {}}, bad / "evil_zip.pt")
    (bad / "noise.pt").write_bytes(b"\x93" * 500)
    torch.save({"a": torch.ones(2)}, bad / "other.pt")
    return [
        ("gpt2", "not a model specification.*run:NAME, dir:PATH"), ("dir:", "not a model specification"),
        ("ftp:x", "not a model specification"), ("run:nobody", "no such run.*Known runs: .*toy"),
        ("dir:/no/such/place", "no such folder"), (f"dir:{bad / 'empty'}", "no config.json"),
        (f"dir:{bad / 'short'}", "truncated"), (f"dir:{bad / 'misfit'}", "where the config says"),
        (f"dir:{bad / 'pickled'}", r"pickled \(pytorch_model.bin\)"), (f"dir:{bad / 't5'}", "T5 is not a causal"),
        (f"dir:{bad / 'hole'}", "is missing"), (f"dir:{bad}/{'x' * 300}", "no such folder|too long"),
        ("hub:no/body", "the hub cannot be reached.*dir:PATH"), ("hub:a/b/c", "not a name of the hub"),
        (f"nanogpt:{bad / 'evil.pt'}", "would run pickled code"), (f"nanogpt:{bad / 'none.pt'}", "no such file"),
        (f"tl:{bad / 'evil_zip.pt'}", "would run pickled code"), (f"tl:{bad / 'noise.pt'}", "torch file|pickled"),
        (f"tl:{bad / 'nothing'}", "no such file or folder"), (f"nanogpt:{bad / 'other.pt'}", "no nanoGPT checkpoint"),
    ]  # fmt: skip


def test_models_that_cannot_be_opened(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for spec, words in bad_models(place):
        argv = ["run", "attention", "--model", spec, "--tokens", "1,2", "--out", str(tmp_path / "t.csv")]
        refused(capsys, argv, words)
    assert list(tmp_path.iterdir()) == [], "no code ran, no part of a file was written"
    assert main(ATTENTION) == 0, "and it goes on"


def test_prompts_that_cannot_be_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy, chars = ["run", "attention", "--model", "run:toy"], ["run", "attention", "--model", "run:chars"]
    out = ["--out", str(tmp_path / "t.parquet")]
    for argv, words in [
        ([*toy, "--text", "hello"], "no tokenizer.*token ids"), (toy, "no tokenizer"),
        ([*toy, "--tokens", "1,20"], "outside the vocabulary 0..19"), ([*toy, "--tokens", "1,-2"], "vocabulary"),
        ([*toy, "--tokens", "1,b"], "'b' is no number"), ([*toy, "--tokens", ","], "there are none"),
        ([*toy, "--tokens", ",".join(["1"] * 17)], "17 tokens: too long by 1"), (chars, "it is empty"),
        ([*chars, "--text", "abx"], "symbol 'x' at position 2"), ([*chars, "--text", "a" * 40], "too long by 24"),
        ([*chars, "--text", "a\nb"], "⏎"),
    ]:  # fmt: skip
        refused(capsys, [*argv, *out], words)
    assert list(tmp_path.iterdir()) == []


def test_params_and_files_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder.csv").mkdir()
    for more, words in [
        (["--top-k", "51"], "top_k='51'.*top_k is integer from 1 to 50"), (["--top-k", "many"], "top_k is integer"),
        (["--target", "-1"], "target is integer from 0"), (["--target", "20"], "outputs are 0 to 19"),
        (["--out", str(tmp_path / "t.xlsx")], r"End the name with one of .parquet, .csv, .json, .arrow"),
        (["--out", str(tmp_path / "no" / "t.csv")], "no such folder"),
        (["--out", str(tmp_path / "folder.csv")], "it is a folder"), (["--out", "t"], "not a format"),
        (["--out", "/proc/t.csv"], "may not be written|no such file|permission|not permitted"),
    ]:  # fmt: skip
        refused(capsys, [*LENS, *more], words)
    refused(capsys, ["run", "attention", "--model", f"dir:{tmp_path}", "--step", "all"], "no config.json|no weights")
    refused(capsys, ["run", "attention", "--model", f"dir:{tmp_path}", "--step", "3"], "only a run has steps")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.csv"]
    unseen = ["run", "logit_lens", "--model", "run:toy", "--tokens", "7,7,7"]
    refused(capsys, [*unseen, "--out", "t.xlsx"], "End the name")
    assert answered(capsys, unseen)["results"][0]["how"] == "computed", "a target is looked at before the work"


def test_step_all_needs_a_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["run", "attention", "--tokens", "1", "--step", "all"]
    refused(capsys, [*base, "--model", f"dir:{place / 'gpt2'}"], "only a run has steps")
    refused(capsys, [*base, "--model", "run:nobody"], "no such run")
    (place / "runs" / "bare").mkdir()
    (place / "runs" / "bare" / "run.json").write_text('{"model": {"kind": "native", "config": {}}}')
    refused(capsys, [*base, "--model", "run:bare"], "it has no checkpoint yet")


def test_errors_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(refused(capsys, [*LENS, "--top-k", "51", "--json"], "top_k"))
    assert set(told) == {"error", "asked", "found", "todo"} and told["error"] == "BadInput"
    assert json.loads(refused(capsys, ["--json", "describe", "x"], "Known"))["error"] == "BadInput"


def test_a_cache_held_by_another_program_is_said(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from backend.store.store import Store

    monkeypatch.setenv("PHASESCOPE_CACHE", str(tmp_path))
    held = Store.open(tmp_path, 10**9)
    try:
        refused(capsys, ["jobs"], "it is open in process", code=1)
        (tmp_path / "api.json").write_text('{"url": "http://127.0.0.1:9", "token": "x"}')
        refused(capsys, ["jobs"], "it is open in process", code=1)
        (tmp_path / "api.json").write_text("torn")
        refused(capsys, ["jobs"], "it is open in process", code=1)
    finally:
        held.close()


# ---------------------------------------------------------------- train


def test_train_resume_and_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "X"
    told = answered(capsys, ["train", "induction", *SMALL, "--run-dir", str(folder)])
    assert told == {"run": "X", "run_dir": str(folder), "state": "done"}
    assert (folder / "run.json").is_file() and (folder / "checkpoints" / "step_00000012.safetensors").is_file()
    before = (folder / "metrics.jsonl").read_bytes()
    refused(capsys, ["train", "induction", *SMALL, "--run-dir", str(folder)], "a run of that name exists.*--resume")
    assert (folder / "metrics.jsonl").read_bytes() == before
    resume = ["train", "induction", "--run-dir", str(folder), "--resume"]
    assert answered(capsys, resume)["state"] == "done"
    refused(capsys, [*resume, "--steps", "50"], "steps = 50: it was started with 12. Leave it out")
    refused(capsys, ["train", "induction", "--resume"], "--run-dir")
    refused(capsys, ["train", "induction", "--resume", "--run-dir", str(tmp_path / "Y")], "there is no run")
    refused(capsys, ["train", "induction", "--steps", "0"], "steps is integer from 1 to 100000")
    refused(capsys, ["train", "induction", "--n-heads", "3", "--run-dir", str(tmp_path / "Z")], "cannot be divided")
    refused(capsys, ["train", "induction", *SMALL, "--run-dir", "/proc/nowhere"], "nowhere", code=1)
    assert not (tmp_path / "Y").exists() and not (tmp_path / "Z").exists()
    argv = ["run", "logit_lens", "--model", f"run:{folder}", "--tokens", "1,2,1"]
    assert answered(capsys, [*argv, "--step", "all"])["rows"] > 0


# ---------------------------------------------------------------- processes


def command(place: Path, *argv: str, **more: Any) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "backend", *argv], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env={**os.environ, **variables(place)}, **more)  # fmt: skip


def test_a_real_process_says_nothing_but_its_answer(place: Path, tmp_path: Path) -> None:
    """Libraries write to stderr what capsys in one long process may have seen already; here each starts anew."""
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "evil.pt").write_bytes(pickle.dumps(Evil()))
    evil = ["run", "attention", "--model", f"tl:{tmp_path / 'pickled' / 'evil.pt'}", "--tokens", "1"]
    bad = command(tmp_path / "bad", *evil)  # beside the other: both read torch from the disk first
    good = command(tmp_path, "run", "attention", "--model", f"dir:{place / 'gpt2'}", "--tokens", "1,2,3", "--json")
    out, err = good.communicate(timeout=180)
    assert good.returncode == 0 and json.loads(out)["rows"] == 24 and err == "", err
    out, err = bad.communicate(timeout=180)
    assert bad.returncode == 2 and out == "" and err.count("\n") == 1 and "pickled code" in err


def test_a_reader_that_goes_away_is_no_error(place: Path) -> None:
    started = [command(place, *argv) for argv in (["list"], ["describe", "logit_lens"])]
    for process in started:
        process.stdout.close()  # before anything was written: as `| head -0`
        process.stdout = None
    for process in started:
        err = process.communicate(timeout=180)[1]
        assert err == "" and process.returncode == 0, err


def test_no_transitions_are_none_of_an_ended_run_and_none_yet_of_a_live_one(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Recorder(place / "runs" / "quiet") as run:
        run.log(1, loss=1.0)
        assert main(["transitions", "quiet"]) == 0 and capsys.readouterr().out == "none yet\n"
    assert main(["transitions", "quiet"]) == 0 and capsys.readouterr().out == "none\n"
    assert answered(capsys, ["transitions", "quiet"]) == []


def test_a_stopped_training_can_go_on(tmp_path: Path) -> None:
    """A person's Ctrl-C, and the TERM that SLURM sends when the time is up: two trainings side by side."""
    with ThreadPoolExecutor() as both:
        list(both.map(stopped_training, (tmp_path / "ctrl-c", tmp_path / "term"), (signal.SIGINT, signal.SIGTERM)))


def stopped_training(place: Path, number: signal.Signals) -> None:
    """Train, send the signal, look at what it leaves."""
    folder = place / "long"
    params = [word for n, v in small(steps=100_000, n_checkpoints=2).items() for word in (f"--{n}", str(v))]
    hears = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - started by `&` it would ignore Ctrl-C
    process = command(place, "train", "induction", *params, "--run-dir", str(folder), preexec_fn=hears)
    until(lambda: len((folder / "metrics.jsonl").read_bytes()) > 500 if (folder / "metrics.jsonl").exists() else False,
          "the run writes", 60)  # fmt: skip
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=180)
    finally:
        process.kill()  # where it did not stop it would train on beside all other tests
    assert process.returncode == 1 and err == "Stopped.\n" and out == "", err
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "stopped" and last["step"] < 100_000
    assert list((folder / "checkpoints").glob(f"step_{last['step']:08d}.safetensors"))
