"""The HTTP API of a real server: tokens, records for every mistake, results, and the command line through it."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from backend import analyses
from backend.export import from_arrow
from tests import browser
from tests.jobs_targets import process_ended, until
from tests.models_support import hf_folder, run_folder
from tests.test_facade import small

APP = [sys.executable, "-m", "app"]
ASK = {"analysis": "logit_lens", "model": "run:toy", "ids": [1, 2, 3, 1], "params": {"top_k": 3}}


@dataclass
class House:
    """A running dashboard and a client that holds its token."""

    place: Path
    server: browser.Server
    http: httpx.Client

    @property
    def env(self) -> dict[str, str]:
        return variables(self.place)

    def ended(self, job_id: str) -> dict[str, Any]:
        """Wait until a job has ended and return it."""

        def look() -> Any:
            job = self.http.get(f"/jobs/{job_id}", params={"wait": 5}).json()
            return job if job["state"] not in ("queued", "running") else None

        return until(look, f"job {job_id} ends", 90)

    def asked(self, ask: dict[str, Any]) -> str:
        """Submit until it is kept; return the key."""
        while (answer := self.http.post("/submit", json=ask)).json()["state"] != "kept":
            ended = self.ended(answer.json()["job"]["id"])
            assert ended["state"] == "done", ended["error"]
        return answer.json()["key"]


def variables(place: Path) -> dict[str, str]:
    """The environment of a house under `place` with one worker."""
    return {"PHASESCOPE_CACHE": str(place / "cache"), "PHASESCOPE_RUNS": str(place / "runs"), "PHASESCOPE_WORKERS": "1",
            "PHASESCOPE_DEVICE": "cpu", "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(place / "hub")}  # fmt: skip


def client(place: Path) -> httpx.Client:
    known = json.loads((place / "cache" / "api.json").read_text())
    return httpx.Client(base_url=f"{known['url']}/api/v1", timeout=60, trust_env=False,
                        limits=httpx.Limits(keepalive_expiry=1.0),
                        headers={"Authorization": f"Bearer {known['token']}"})  # fmt: skip


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    place = tmp_path_factory.mktemp("api")
    run_folder(place / "runs" / "toy")
    hf_folder(place / "gpt2", "gpt2")
    with browser.serve(APP, place / "log", "/api/v1/health", variables(place)) as server:
        with client(place) as http:
            yield House(place, server, http)
    assert server.process.returncode in (0, -signal.SIGTERM, 143)
    assert not (place / "cache" / "api.json").exists(), "the token is removed when the dashboard ends"
    assert "Traceback" not in (place / "log").read_text()


def record(answer: httpx.Response, status: int, words: str = "") -> dict[str, str]:
    """Assert that an answer is an error record of this status."""
    assert answer.status_code == status, answer.text
    told = answer.json()
    assert set(told) == {"error", "asked", "found", "todo"} and all(told.values()), told
    assert re.search(words, " ".join(told.values())) and "Traceback" not in answer.text, told
    return told


# ---------------------------------------------------------------- who may ask


def test_health_is_open_and_says_little(house: House) -> None:
    plain = httpx.get(f"{house.server.url}/api/v1/health", trust_env=False)
    assert plain.json() == {"ok": True}
    assert house.http.get("/health").json()["cache"] == str(house.place / "cache")


def test_every_other_route_asks_for_the_token(house: House) -> None:
    stranger = httpx.Client(base_url=house.server.url, trust_env=False)
    routes = stranger.get("/api/v1").json()
    assert len(routes) > 15 and all(r["does"] and r["methods"] for r in routes)
    right = house.http.headers["authorization"]
    wrong = [None, "", "Bearer", "Bearer x", "Basic abc", "Bearer é".encode(), right + "x", right.lower(), right[7:]]
    for route in routes:
        if route["path"] in ("/api/v1", "/api/v1/health"):
            continue
        path = re.sub(r"\{\w+\}", "x", route["path"])
        for given in wrong:
            headers = {} if given is None else {"Authorization": given}
            record(stranger.request(route["methods"][0], path, headers=headers), 401, "no valid bearer token")


def test_the_token_is_the_owners_alone(house: House) -> None:
    file = house.place / "cache" / "api.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    told = json.loads(file.read_text())
    assert told["pid"] == house.server.process.pid and len(told["token"]) >= 32 and told["url"] == house.server.url


# ---------------------------------------------------------------- what it answers


def test_analyses_and_recipes_with_their_schemas(house: House) -> None:
    found = house.http.get("/analyses").json()
    assert found == json.loads(json.dumps([a.schema() for a in analyses.registry().values()]))
    assert house.http.get("/recipes").json()[0]["params"]["properties"]["steps"]["minimum"] == 1


def test_submit_opening_job_result(house: House) -> None:
    first = house.http.post("/submit", json=ASK).json()
    assert first["state"] == "opening" and first["job"]["kind"] == "open" and first["key"] == ""
    assert house.ended(first["job"]["id"])["state"] == "done"
    second = house.http.post("/submit", json=ASK).json()
    assert second["state"] in ("queued", "running") and second["job"]["key"] == second["key"]
    assert house.ended(second["job"]["id"])["state"] == "done"
    planned = house.http.post("/submit", json={**ASK, "ids": "5 6 7", "step": 10, "plan": True}).json()
    assert planned["state"] == "planned" and planned["job"] is None and planned["estimate"]["seconds"] > 0
    kept = house.http.post("/submit", json={**ASK, "ids": "1 2 3 1", "step": 10}).json()
    assert kept == {"state": "kept", "key": second["key"], "job": None}
    where = f"/results/{kept['key']}"
    arrow, rows = house.http.get(where), house.http.get(where, params={"format": "json"}).json()
    frame = from_arrow(arrow.content)
    assert arrow.headers["content-type"] == "application/vnd.apache.arrow.stream"
    assert len(rows) == len(frame) == 3 * 4 * 3
    assert [list(r.values()) for r in rows] == frame.astype(object).where(frame.notna(), None).to_numpy().tolist()
    for form in ("csv", "parquet"):
        assert house.http.get(where, params={"format": form}).status_code == 200
    told = house.http.get(f"{where}/record").json()
    assert told["subject"]["tokens"] == [1, 2, 3, 1] and told["provenance"]["seconds"] > 0
    assert kept["key"] in {r["key"] for r in house.http.get("/results", params={"analysis": "logit_lens"}).json()}
    assert house.http.get("/results", params={"text": "nowhere"}).json() == []
    assert "run:toy" in {m["spec"] for m in house.http.get("/models").json()}


def test_pairs_by_task_or_row_are_asked_about_in_words(house: House) -> None:
    ask = {"analysis": "pair_answers", "model": "run:toy"}
    row = {"clean": "1 2 3", "corrupted": "1 4 3", "answer": "2", "distractor": "4"}
    by_task = house.asked({**ask, "about": {"task": "induction", "n": 3, "seed": 1}})
    own = house.asked({**ask, "about": {"pairs": [row]}})
    told = [house.http.get(f"/results/{key}/record").json()["subject"] for key in (by_task, own)]
    assert [len(t["pairs"]) for t in told] == [3, 1] and told[1]["pairs"][0]["clean"] == [1, 2, 3]
    assert len(house.http.get(f"/results/{own}", params={"format": "json"}).json()) == 2
    assert house.asked({**ask, "about": {"n": 3, "seed": 1}}) == by_task  # the first task that fits
    for about, words in (
        ({"task": "ioi"}, "no tokenizer"), ({"task": "nothing"}, "no such task"), ({"task": "own: nobody"}, "nobody"),
        ({"pairs": [{**row, "answer": "4"}]}, "Pair 1"), ({"pairs": "x"}, "no list"), ({"n": "x"}, "n of the pairs"),
        ({"n": 0}, "from 1 to 512"), ({"seed": -1}, "seed of the pairs"),
    ):  # fmt: skip
        answer = house.http.post("/submit", json={**ask, "about": about})
        assert answer.status_code in (400, 404) and words in answer.text, (about, answer.text)


def test_models_runs_metrics_doctor(house: House) -> None:
    names = {r["name"]: r for r in house.http.get("/runs").json()}
    shipped = next(n for n, r in names.items() if r.get("shipped"))
    assert house.http.get(f"/runs/{shipped}").json()["checkpoints"] == names[shipped]["checkpoints"]
    rows = until(lambda: house.http.get(f"/runs/{shipped}/metrics", params={"names": "loss", "points": 50}).json(),
                 "the shipped metrics")  # fmt: skip
    assert {r["metric"] for r in rows} == {"loss"} and len(rows) <= 110
    assert house.http.get("/doctor").json()["settings"]["workers"] == 1


MISTAKES: list[tuple[str, str, dict[str, Any], int, str]] = [
    ("POST", "/submit", {"content": b"{'a'"}, 400, "not a JSON object"),
    ("POST", "/submit", {"content": b"[1]"}, 400, "not a JSON object"),
    ("POST", "/submit", {"content": b"\xff\xfe"}, 400, "not a JSON object"),
    ("POST", "/submit", {"content": b"[" * 100_000}, 400, "not a JSON object"),
    ("POST", "/submit", {}, 400, "'analysis'.*lacks"),
    ("POST", "/submit", {"json": {"analysis": "attention"}}, 400, "'model'.*lacks"),
    ("POST", "/submit", {"json": {**ASK, "analysis": 7}}, 400, "'analysis'.*int"),
    ("POST", "/submit", {"json": {**ASK, "model": ["run:toy"]}}, 400, "'model'.*list"),
    ("POST", "/submit", {"json": {**ASK, "model": "run"}}, 400, "not a model specification"),
    ("POST", "/submit", {"json": {**ASK, "model": "run:\x00"}}, 404, "no such run"),
    ("POST", "/submit", {"json": {**ASK, "model": "dir:/" + "x" * 5000}}, 400, "name too long"),
    ("POST", "/submit", {"json": {**ASK, "model": "run:nobody"}}, 404, "Known runs"),
    ("POST", "/submit", {"json": {**ASK, "step": "ten"}}, 400, "'step'.*str"),
    ("POST", "/submit", {"json": {**ASK, "step": True}}, 400, "'step'.*bool"),
    ("POST", "/submit", {"json": {**ASK, "step": 11}}, 404, "Nearest checkpoints"),
    ("POST", "/submit", {"json": {**ASK, "ids": {"a": 1}}}, 400, "'ids'.*dict"),
    ("POST", "/submit", {"json": {**ASK, "ids": [[1]]}}, 400, "no number"),
    ("POST", "/submit", {"json": {**ASK, "ids": [99]}}, 400, "vocabulary 0..19"),
    ("POST", "/submit", {"json": {**ASK, "ids": []}}, 400, "there are none"),
    ("POST", "/submit", {"json": {**ASK, "text": 3}}, 400, "'text'.*int"),
    ("POST", "/submit", {"json": {**ASK, "params": [1]}}, 400, "'params'.*list"),
    ("POST", "/submit", {"json": {**ASK, "params": {"top_k": 0}}}, 400, "top_k is integer from 1 to 50"),
    ("POST", "/submit", {"json": {**ASK, "params": {"top_k": [1]}}}, 400, "top_k is integer"),
    ("POST", "/submit", {"json": {**ASK, "analysis": "attend"}}, 404, "Known: .*attention"),
    ("POST", "/models", {"json": {}}, 400, "'spec'.*lacks"),
    ("POST", "/models", {"json": {"spec": "dir:/no/such"}}, 404, "no such folder"),
    ("POST", "/runs", {"json": {"recipe": "nothing"}}, 404, "Known: .*induction"),
    ("POST", "/runs", {"json": {"recipe": "induction", "params": {"steps": 0}}}, 400, "steps is integer from 1"),
    ("POST", "/runs", {"json": {"recipe": "induction", "name": "../x"}}, 400, "not a plain folder name"),
    ("POST", "/runs", {"json": {"recipe": "induction", "resume": "yes"}}, 400, "'resume'.*str"),
    ("POST", "/runs", {"json": {"recipe": "induction", "name": "none", "resume": True}}, 404, "there is no run"),
    ("GET", "/runs/nobody", {}, 404, "Known:"),
    ("GET", "/runs/nobody/metrics", {}, 404, "Known:"),
    ("GET", "/runs/induction-demo/metrics?points=many", {}, 400, "points='many'"),
    ("GET", "/runs/induction-demo/metrics?points=0", {}, 400, "from 1 to 100000"),
    ("GET", "/jobs/nobody", {}, 404, "no such job"),
    ("GET", "/jobs/nobody?wait=5", {}, 404, "no such job"),
    ("GET", "/jobs/nobody?wait=soon", {}, 400, "wait='soon'"),
    ("GET", "/jobs/nobody?wait=nan", {}, 400, "wait='nan'"),
    ("GET", "/jobs/nobody?wait=-1", {}, 400, "wait='-1'"),
    ("POST", "/jobs/nobody/cancel", {"json": {}}, 404, "no such job|no job"),
    ("POST", "/jobs/nobody/cancel", {"json": {"force": "no"}}, 400, "'force'.*str"),
    ("POST", "/jobs/nobody/retry", {}, 404, "no such job"),
    ("GET", "/results/nothing", {}, 404, "not kept"),
    ("GET", "/results/nothing/record", {}, 404, "not kept"),
    ("GET", "/results/%27%3B%20DROP%20TABLE%20results%3B--", {}, 404, "not kept"),
    ("GET", "/nowhere", {}, 404, "no such route"),
    ("PUT", "/submit", {"json": ASK}, 404, "no such route"),
    ("DELETE", "/results/nothing", {}, 404, "no such route"),
    ("GET", "/submit", {}, 404, "no such route"),
]


def test_every_mistake_is_a_record(house: House) -> None:
    """Never a traceback, never a 500; the fixture looks into the log as well."""
    house.asked(ASK)
    for method, path, more, status, words in MISTAKES:
        record(house.http.request(method, path, **more), status, words)
    key = house.asked(ASK)
    record(house.http.get(f"/results/{key}", params={"format": "xlsx"}), 400, "Use one of parquet")
    assert house.http.get("/health").json()["ok"], "and it goes on"


def test_two_clients_share_one_job(house: House) -> None:
    ask = {"recipe": "induction", "params": small(steps=100_000), "name": "shared"}
    job = house.http.post("/runs", json=ask).json()["job"]  # holds the only worker
    same = {**ASK, "ids": [5, 6, 7]}
    with client(house.place) as other:
        one, two = (c.post("/submit", json=same).json() for c in (house.http, other))
        assert one["job"]["id"] == two["job"]["id"] and one["key"] == two["key"] and one["job"]["state"] == "queued"
        record(other.post("/runs", json={**ask, "params": small(steps=7)}), 400, "a run of that name exists")
        until(lambda: other.get(f"/jobs/{job['id']}").json()["state"] == "running", "the training runs")
        assert other.post(f"/jobs/{job['id']}/cancel").json()["stopping"] in (True, False)
    ended = house.ended(job["id"])
    assert ended["state"] == "cancelled" and [line["text"] for line in ended["story"]]
    assert house.ended(one["job"]["id"])["state"] == "done"
    assert house.http.get(f"/results/{one['key']}").status_code == 200
    assert house.http.get("/runs/shared").json()["state"] == "stopped"
    record(house.http.post(f"/jobs/{one['job']['id']}/retry"), 400, "it is done")


# ---------------------------------------------------------------- the command line beside it


def python(house: House, *argv: str, cwd: Path = browser.ROOT, **env: str) -> subprocess.CompletedProcess:
    full = {**os.environ, "PYTHONPATH": str(browser.ROOT), "OMP_NUM_THREADS": "1", **house.env, **env}
    return subprocess.run([sys.executable, "-m", *argv], cwd=cwd, env=full, capture_output=True, text=True, timeout=120)


def test_the_command_line_goes_through_the_dashboard(house: House) -> None:
    doctor = json.loads(python(house, "backend", "doctor", "--json").stdout)
    assert doctor["through"] == "the running dashboard"
    argv = ["run", "attention", "--model", "dir:gpt2", "--tokens", "4,5,6", "--json"]
    told = python(house, "backend", *argv, cwd=house.place)  # a path is meant from where the command is given
    assert told.returncode == 0 and told.stderr == "", told.stderr
    answer = json.loads(told.stdout)
    assert answer["results"][0]["how"] == "computed" and len(answer["table"]) == 2 * 4 * 3
    key = answer["results"][0]["key"]
    assert house.http.get(f"/results/{key}/record").json()["analysis"] == "attention"
    bad = python(house, "backend", "run", "attention", "--model", "run:toy", "--tokens", "99")
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and "vocabulary 0..19" in bad.stderr


def test_a_second_dashboard_says_that_one_runs(house: House) -> None:
    second = python(house, "app", PHASESCOPE_PORT=str(browser.free_port()))
    assert second.returncode == 1 and second.stdout == "" and second.stderr.count("\n") == 1
    assert f"one already runs on this cache at {house.server.url}" in second.stderr


def test_a_taken_port_says_so(house: House, tmp_path: Path) -> None:
    port = house.server.url.rsplit(":", 1)[1]
    told = python(house, "app", PHASESCOPE_PORT=port, PHASESCOPE_CACHE=str(tmp_path / "other"))
    assert told.returncode == 1 and told.stderr.count("\n") == 1 and f"Port {port}" in told.stderr


def test_a_stale_token_file_misleads_nobody(house: House, tmp_path: Path) -> None:
    """A killed dashboard leaves its file; another cache's dashboard may have the port by now."""
    (tmp_path / "api.json").write_text(json.dumps({"url": house.server.url, "token": "old", "pid": 1}))
    told = python(house, "backend", "doctor", "--json", PHASESCOPE_CACHE=str(tmp_path))
    assert json.loads(told.stdout)["through"] == "the cache directly", told.stderr


# ---------------------------------------------------------------- killed


def test_a_killed_dashboard_loses_nothing(tmp_path: Path) -> None:
    run_folder(tmp_path / "runs" / "toy")
    log = tmp_path / "log"
    with browser.serve(APP, log, "/api/v1/health", variables(tmp_path)) as server:
        with client(tmp_path) as http:
            before = House(tmp_path, server, http)
            key = before.asked(ASK)
            table = http.get(f"/results/{key}", params={"format": "json"}).json()
            ask = {"recipe": "induction", "params": small(steps=100_000), "name": "long"}
            training = http.post("/runs", json=ask).json()["job"]
            waiting = http.post("/submit", json={**ASK, "ids": [7, 8]}).json()["job"]
            until(lambda: any(r["name"] == "long" and r.get("last_step", 0) > 20 and r["checkpoints"]
                              for r in http.get("/runs").json()), "the training moves", 60)  # fmt: skip
            workers = [w["pid"] for w in http.get("/doctor").json()["workers"]]
        server.process.kill()
        server.process.wait()
        until(lambda: all(process_ended(pid) for pid in workers), "the workers end with their app", 30)
    assert (tmp_path / "cache" / "api.json").exists(), "killed: nobody could clean up"
    with browser.serve(APP, log, "/api/v1/health", variables(tmp_path)) as server:
        with client(tmp_path) as http:
            after = House(tmp_path, server, http)
            assert http.get(f"/results/{key}", params={"format": "json"}).json() == table
            assert http.post("/submit", json=ASK).json() == {"state": "kept", "key": key, "job": None}
            for job in (training, waiting):
                assert http.get(f"/jobs/{job['id']}").json()["state"] == "interrupted"
            assert http.get("/runs/long").json()["state"] == "interrupted"
            reached = http.get("/runs/long").json()["last_step"]
            again = http.post(f"/jobs/{waiting['id']}/retry").json()
            assert after.ended(again["id"])["state"] == "done"
            again = http.post(f"/jobs/{training['id']}/retry").json()
            until(lambda: http.get("/runs/long").json()["last_step"] > reached, "the training goes on", 60)
            http.post(f"/jobs/{again['id']}/cancel")
            assert after.ended(again["id"])["state"] == "cancelled"
