"""The HTTP API, version 1, under /api/v1: loopback, bearer token (from cache/api.json), JSON in and out.

GET /api/v1 lists the routes with their first docstring line. Errors answer with the record
{error, asked, found, todo} and 400 (bad input), 401, 404, 409 or 500.
"""

from __future__ import annotations

import json
import logging
import math
import secrets
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app import house
from backend import doctor, export
from backend.errors import BadInput, Broken, NotFound, PhasescopeError
from backend.facade.base import UNFINISHED

TOKEN = ""  # set by the lifespan; empty refuses everybody
log = logging.getLogger(__name__)
MEDIA = {
    "arrow": "application/vnd.apache.arrow.stream",
    "json": "application/json",
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
}


def _allowed(request: Request) -> bool:
    given = request.headers.get("authorization", "")
    return bool(TOKEN) and secrets.compare_digest(given.encode(), f"Bearer {TOKEN}".encode())


def _json(data: Any, status: int = 200) -> Response:
    return Response(json.dumps(_plain(data), default=str, allow_nan=False), status, media_type="application/json")


def _plain(data: Any) -> Any:
    """Return data with NaN and infinities as null: JSON has no word for them."""
    if isinstance(data, dict):
        return {k: _plain(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(v) for v in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _route(path: str, answer: Callable[[Any, Request, dict], Any], method: str = "GET", open_: bool = False) -> Route:
    """Wrap `answer(backend, request, body)`: token, JSON body, a thread of its own, errors as records."""

    async def endpoint(request: Request) -> Response:
        if not open_ and not _allowed(request):
            return _json(
                {
                    "error": "BadInput",
                    "asked": path,
                    "found": "no valid bearer token",
                    "todo": "Send Authorization: Bearer with the token of cache/api.json",
                },
                401,
            )
        try:
            body = await _body(request) if request.method == "POST" else {}
            found = await run_in_threadpool(answer, house.backend(), request, body)
        except PhasescopeError as error:
            return _json(error.record(), error.http_status)
        except Exception as error:  # noqa: BLE001 - a caller gets a record, the log the traceback
            log.exception("%s %s failed", request.method, request.url.path)
            told = Broken(path, f"{type(error).__name__}: {error}", "This is a defect; the traceback is in the log")
            return _json(told.record(), 500)
        return found if isinstance(found, Response) else _json(found)

    endpoint.__doc__ = answer.__doc__
    return Route(f"/api/v1{path}", endpoint, methods=[method] if method else EVERY)


async def _body(request: Request) -> dict:
    raw = await request.body()
    try:
        body = json.loads(raw) if raw else {}
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise BadInput(request.url.path, "the body is not a JSON object", "Send one, see GET /api/v1")
    return body


def _field(body: dict, name: str, kinds: tuple[type, ...], default: Any = ...) -> Any:
    """Return a field of the body. Raises BadInput where it is missing (and has no default) or of another kind."""
    value = body.get(name)
    if value is None:
        if default is ...:
            raise BadInput(f"Field {name!r}", "the body lacks it", "Send it, see GET /api/v1")
        return default
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(k.__name__ for k in kinds)
        raise BadInput(f"Field {name!r}", f"it is a {type(value).__name__}", f"Send a {wanted}")
    return value


def index(backend: Any, request: Request, body: dict) -> Any:
    """This list."""
    return [
        {
            "path": r.path,
            "methods": sorted((r.methods or set()) - {"HEAD"}),
            "does": (r.endpoint.__doc__ or "").split("\n")[0],
        }
        for r in ROUTES
        if r is not NOWHERE
    ]


def health(backend: Any, request: Request, body: dict) -> Any:
    """Say that the dashboard is alive; with a token also workers, cache and notices."""
    return backend.health() if _allowed(request) else {"ok": True}


def get_doctor(backend: Any, request: Request, body: dict) -> Any:
    """Versions, devices, settings, cache, workers."""
    return doctor.report(backend)


def get_analyses(backend: Any, request: Request, body: dict) -> Any:
    """Every analysis with the JSON schema of its params, its columns and figures."""
    return [a.schema() for a in backend.analyses().values()]


def get_recipes(backend: Any, request: Request, body: dict) -> Any:
    """Every training recipe with the JSON schema of its params."""
    return [r.schema() for r in backend.recipes().values()]


def get_models(backend: Any, request: Request, body: dict) -> Any:
    """The models opened so far."""
    return JSONResponse(json.loads(backend.models().to_json(orient="records", date_format="iso")))


def post_model(backend: Any, request: Request, body: dict) -> Any:
    """Open {spec, step}: the card where it is known, else the job that opens it."""
    return backend.open(_field(body, "spec", (str,)), _field(body, "step", (int,), None))


def get_runs(backend: Any, request: Request, body: dict) -> Any:
    """Every run with state, params and checkpoints."""
    return backend.runs()


def get_run(backend: Any, request: Request, body: dict) -> Any:
    """One run."""
    return backend.run(request.path_params["name"])


def get_metrics(backend: Any, request: Request, body: dict) -> Any:
    """Metrics of a run, ?names=loss,accuracy&points=2000."""
    names = [n for n in request.query_params.get("names", "").split(",") if n]
    points = int(_number("points", request.query_params.get("points", "2000"), 1, 100_000))
    name = backend.run(request.path_params["name"])["name"]
    frame = backend.metrics(name, names or None, points)
    return json.loads(export.to_bytes(frame, "json"))


def get_transitions(backend: Any, request: Request, body: dict) -> Any:
    """The transitions of a run: step, interval, width, verdict, channels, alarm."""
    return backend.transitions(request.path_params["name"])


def post_run(backend: Any, request: Request, body: dict) -> Any:
    """Train {recipe, params, name, run_dir, resume} as a job."""
    return backend.train(
        _field(body, "recipe", (str,)),
        _field(body, "params", (dict,), {}),
        _field(body, "name", (str,), ""),
        _field(body, "run_dir", (str,), ""),
        _field(body, "resume", (bool,), False),
    )


def get_diagrams(backend: Any, request: Request, body: dict) -> Any:
    """Every phase diagram with its state."""
    return backend.diagrams()


def post_diagram(backend: Any, request: Request, body: dict) -> Any:
    """Start {recipe, x, xs, y, ys, seeds, params, name}: what is missing of it; {plan: true} only checks and prices."""
    made = backend.plan_diagram if _field(body, "plan", (bool,), False) else backend.start_diagram
    return made(
        _field(body, "recipe", (str,)),
        _field(body, "x", (str,)),
        _numbers(body, "xs"),
        _field(body, "y", (str,)),
        _numbers(body, "ys"),
        _field(body, "seeds", (int, list), 2),
        _field(body, "params", (dict,), {}),
        _field(body, "name", (str,), ""),
        _field(body, "command", (str,), ""),
    )


def _numbers(body: dict, name: str) -> list[float]:
    values = _field(body, name, (list,))
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise BadInput(f"Field {name!r}", "not all of it are numbers", "Send a list of numbers")
    return values


def get_diagram(backend: Any, request: Request, body: dict) -> Any:
    """One phase diagram: its definition, state and runs."""
    return backend.diagram(request.path_params["name"])


def post_diagram_continue(backend: Any, request: Request, body: dict) -> Any:
    """Start what is missing of a phase diagram and resume what stopped."""
    return backend.continue_diagram(request.path_params["name"])


def post_diagram_cancel(backend: Any, request: Request, body: dict) -> Any:
    """Stop a phase diagram; what is finished stays."""
    return backend.cancel_diagram(request.path_params["name"])


def post_diagram_export(backend: Any, request: Request, body: dict) -> Any:
    """Write definition and curves of a phase diagram into {folder}, to hand it on."""
    return backend.export_diagram(request.path_params["name"], _field(body, "folder", (str,)))


def get_diagram_cells(backend: Any, request: Request, body: dict) -> Any:
    """The cells of a phase diagram, ?accuracy=0.9&delay=1000: phase, how many seeds say so, delay."""
    accuracy = _number("accuracy", request.query_params.get("accuracy", "0.9"), -math.inf, math.inf)
    delay = _number("delay", request.query_params.get("delay", "1000"), -math.inf, math.inf)
    return backend.diagram_phases(request.path_params["name"], accuracy, delay).to_dict("records")


def post_checkpoint(backend: Any, request: Request, body: dict) -> Any:
    """Ask a running run for a checkpoint at its next step."""
    return backend.checkpoint_now(request.path_params["name"])


def get_attached(backend: Any, request: Request, body: dict) -> Any:
    """The attached places and their runs."""
    return backend.attached()


def post_attached(backend: Any, request: Request, body: dict) -> Any:
    """Attach the runs at {path}: a run folder, a folder of runs, TensorBoard's logs."""
    return backend.attach(_field(body, "path", (str,)))


def post_submit(backend: Any, request: Request, body: dict) -> Any:
    """Ask {analysis, model, step, text or ids, params, about}: kept, or a job; after `opening` wait and ask again.

    With {plan: true} nothing starts: `estimate` tells seconds, memory, and why it would be refused.

    `about` words pairs ({task, n, seed} or {pairs: [{clean, corrupted, answer, distractor}]}) or a corpus ({source,
    rows, length, seed})."""
    return backend.submit(
        _field(body, "analysis", (str,)),
        _field(body, "model", (str,)),
        _field(body, "step", (int,), None),
        _field(body, "text", (str,), ""),
        _field(body, "ids", (list, str), None),
        _field(body, "params", (dict,), {}),
        _field(body, "about", (dict,), {}),
        _field(body, "plan", (bool,), False),
    )


def get_jobs(backend: Any, request: Request, body: dict) -> Any:
    """Jobs, newest first."""
    return backend.jobs()


def get_job(backend: Any, request: Request, body: dict) -> Any:
    """One job; ?wait=SECONDS answers when it has ended or the time is over (at most 30)."""
    wait = _number("wait", request.query_params.get("wait", "0"), 0, 86_400)
    job_id = request.path_params["id"]
    job = backend.job(job_id)
    return backend.wait(job_id, min(wait, 30.0)) if wait > 0 and job["state"] in UNFINISHED else job


def _number(name: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise BadInput(f"{name}={text!r}", "not a number in its range", f"Give a number from {low:g} to {high:g}")
    return value


def post_cancel(backend: Any, request: Request, body: dict) -> Any:
    """Cancel a job; {force: true} ends its worker."""
    return backend.cancel(request.path_params["id"], _field(body, "force", (bool,), False))


def post_retry(backend: Any, request: Request, body: dict) -> Any:
    """Queue an ended job again."""
    return backend.retry(request.path_params["id"])


def get_results(backend: Any, request: Request, body: dict) -> Any:
    """Kept results, ?analysis=NAME&text=WORDS."""
    frame = backend.results(request.query_params.get("analysis") or None, request.query_params.get("text", ""))
    return JSONResponse(json.loads(frame.to_json(orient="records", date_format="iso")))


def get_result(backend: Any, request: Request, body: dict) -> Any:
    """The table of a result, ?format=arrow (default), json, csv or parquet."""
    form = request.query_params.get("format", "arrow")
    data = export.to_bytes(backend.table(request.path_params["key"]), form)
    return Response(data, media_type=MEDIA[form])


def get_record(backend: Any, request: Request, body: dict) -> Any:
    """The provenance of a result."""
    return backend.record(request.path_params["key"])


def nowhere(backend: Any, request: Request, body: dict) -> Any:
    """Say that there is no such route."""
    raise NotFound(f"{request.method} {request.url.path}", "no such route", "See GET /api/v1")


EVERY = ["GET", "POST", "PUT", "PATCH", "DELETE"]
NOWHERE = _route("/{rest:path}", nowhere, "")
ROUTES = [
    _route("", index, open_=True),
    _route("/health", health, open_=True),
    _route("/doctor", get_doctor),
    _route("/analyses", get_analyses),
    _route("/recipes", get_recipes),
    _route("/models", get_models),
    _route("/models", post_model, "POST"),
    _route("/runs", get_runs),
    _route("/runs", post_run, "POST"),
    _route("/runs/{name}", get_run),
    _route("/runs/{name}/metrics", get_metrics),
    _route("/runs/{name}/transitions", get_transitions),
    _route("/runs/{name}/checkpoint", post_checkpoint, "POST"),
    _route("/diagrams", get_diagrams),
    _route("/diagrams", post_diagram, "POST"),
    _route("/diagrams/{name}", get_diagram),
    _route("/diagrams/{name}/cells", get_diagram_cells),
    _route("/diagrams/{name}/continue", post_diagram_continue, "POST"),
    _route("/diagrams/{name}/cancel", post_diagram_cancel, "POST"),
    _route("/diagrams/{name}/export", post_diagram_export, "POST"),
    _route("/attached", get_attached),
    _route("/attached", post_attached, "POST"),
    _route("/submit", post_submit, "POST"),
    _route("/jobs", get_jobs),
    _route("/jobs/{id}", get_job),
    _route("/jobs/{id}/cancel", post_cancel, "POST"),
    _route("/jobs/{id}/retry", post_retry, "POST"),
    _route("/results", get_results),
    _route("/results/{key}", get_result),
    _route("/results/{key}/record", get_record),
    NOWHERE,
]
