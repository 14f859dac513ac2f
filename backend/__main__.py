"""The command line, derived from the registry: `python -m backend --help`.

Works through a running dashboard where there is one, else opens the cache itself. Exit codes: 0, 2 for bad input,
1 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from backend import analyses, diagram_cli, export, slurm
from backend import settings as settings_room
from backend.client import running_dashboard
from backend.contract import Corpus, Pairs, Params, Problems, Prompt, parse_spec
from backend.errors import BadInput, Broken, PhasescopeError, from_record
from backend.models import prompts, registry
from backend.runs import recipes
from backend.subjects import TASKS

TAKEN = ("model", "step", "text", "tokens", "out", "json", "help", "run_dir", "resume", "task", "pairs", "n_pairs",
         "pairs_seed", "source", "file", "n_rows", "row_length", "corpus_seed", "dry_run")  # fmt: skip
TAKEN_IN_TRAIN = ("json", "help", "run_dir", "resume")
DEFECT = "This is a defect; `python -X dev -m backend ...` shows where it happened"
ROWS = 200  # shown of a table; --out writes all
ENDED = ("done", "failed", "cancelled", "interrupted")
LIVE = ("queued", "running")  # states of a run that may still change
PATIENCE = 20.0  # s for a stopped job to keep its state; SLURM kills 30 s after its TERM


def parser() -> argparse.ArgumentParser:
    """Build the parser: one sub-command per analysis and per recipe with a flag per param."""
    top = argparse.ArgumentParser("python -m backend", description="Phasescope without the browser.")
    top.add_argument("--json", action="store_true", help="print JSON for machines")
    commands = top.add_subparsers(dest="command", required=True)
    for name, words in (
        ("list", "the analyses and recipes"),
        ("models", "the models opened so far and the runs"),
        ("jobs", "the jobs, newest first"),
        ("doctor", "versions, devices, cache, workers"),
    ):
        commands.add_parser(name, help=words)
    describe = commands.add_parser("describe", help="one analysis or recipe: columns, params, source")
    describe.add_argument("name")
    found = commands.add_parser("transitions", help="the transitions of a run: step, interval, width, verdict")
    found.add_argument("run")
    checkpoint = commands.add_parser("checkpoint", help="ask a running run for a checkpoint at its next step")
    checkpoint.add_argument("run")
    attach = commands.add_parser("attach", help="show a run that lies elsewhere: a run folder or TensorBoard's logs")
    attach.add_argument("path")
    _run_parser(commands)
    _train_parser(commands)
    diagram_cli.add_parser(commands)
    for sub in commands.choices.values():
        _json_flag(sub)
    return top


def _json_flag(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON for machines")


def _run_parser(commands: Any) -> None:
    run = commands.add_parser("run", help="compute an analysis, or fetch it where it is kept")
    names = run.add_subparsers(dest="analysis", required=True, metavar="ANALYSIS")
    for one in analyses.registry().values():
        sub = names.add_parser(
            one.name, help=one.asks, description=one.doc, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        sub.add_argument(
            "--model",
            required=True,
            metavar="SPEC",
            help="run:NAME, dir:PATH, hub:NAME@REVISION, nanogpt:PATH, tl:PATH or energy:PATH",
        )
        sub.add_argument("--step", help="checkpoint of a run: a number, or `all` for a sweep")
        _subject_flags(sub, one.subject)
        sub.add_argument("--out", help="FILE.parquet, FILE.csv, FILE.json or FILE.arrow")
        sub.add_argument("--dry-run", action="store_true", help="only say what it would cost: seconds, memory, calls")
        sub.add_argument("--sbatch", metavar="FILE", help="only write a SLURM job script that calls this same command")
        _flags(sub, one.params)


def _subject_flags(sub: argparse.ArgumentParser, subject: type) -> None:
    """What an analysis is asked about: a prompt, pairs of prompts, a corpus; of the weights alone nothing."""
    if subject is Prompt:
        sub.add_argument("--text", default="", help="the prompt")
        sub.add_argument("--tokens", default="", help="token ids instead of text: 5,17,3")
    if subject is Pairs:
        sub.add_argument("--task", default=None,
                         help=f"a task of pairs: {', '.join(prompts.TASKS)}, or \"own: NAME\"; default: one that fits")
        sub.add_argument("--pairs", default=None, metavar="FILE",
                         help="JSON rows {clean, corrupted, answer, distractor}")
        sub.add_argument("--n-pairs", default="16", help="how many pairs of the task (default 16)")
        sub.add_argument("--pairs-seed", default="0", help="seed of the task's pairs (default 0)")
    if subject is Corpus:
        sources = "training, python, random or file; default: the first that the model can read"
        sub.add_argument("--source", default=None, help=sources)
        sub.add_argument("--file", default=None, metavar="PATH", help="the text file of the source `file`")
        sub.add_argument("--n-rows", default="64", help="rows of tokens (default 64)")
        sub.add_argument("--row-length", default="64", help="tokens of a row, cut to n_ctx (default 64)")
        sub.add_argument("--corpus-seed", default="0", help="seed of the rows (default 0)")


    if subject is Problems:
        sub.add_argument("--n-problems", default="64", help="how many problems are drawn (default 64)")
        sub.add_argument("--problem-seed", default="0", help="seed of the problems (default 0)")
        sub.add_argument("--harder", action="store_true", help="of the distribution that nothing was trained on")
        sub.add_argument("--task", default="", help=f"{', '.join(TASKS)}; default: what the model was trained on")


def _about_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the words of a subject that is no prompt; see `Asking.submit`."""
    if hasattr(args, "pairs"):
        if args.pairs:
            return {"pairs": _json_file(args.pairs)}
        n, seed = _whole(args.n_pairs, "--n-pairs"), _whole(args.pairs_seed, "--pairs-seed")
        return {"task": args.task, "n": n, "seed": seed}
    if hasattr(args, "row_length"):
        told: dict[str, Any] = {"rows": _whole(args.n_rows, "--n-rows"),
                                "length": _whole(args.row_length, "--row-length"),
                                "seed": _whole(args.corpus_seed, "--corpus-seed")}  # fmt: skip
        told |= {"path": str(Path(args.file).expanduser().absolute()), "source": "file"} if args.file else {}
        return told | ({"source": args.source} if args.source else {})
    if hasattr(args, "n_problems"):
        return {"n": _whole(args.n_problems, "--n-problems"), "seed": _whole(args.problem_seed, "--problem-seed"),
                "harder": args.harder, "task": args.task}  # fmt: skip
    return {}


def _json_file(path: str) -> list[dict[str, Any]]:
    asked, todo = f"Pairs {path!r}", "Give rows of clean, corrupted, answer, distractor"
    try:
        rows = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(asked, f"no JSON file ({error})", todo) from None
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise BadInput(asked, "it holds no list of objects", todo)
    return rows


def _train_parser(commands: Any) -> None:
    train = commands.add_parser("train", help="train a recipe into a run folder")
    names = train.add_subparsers(dest="recipe", required=True, metavar="RECIPE")
    for one in recipes.registry().values():
        sub = names.add_parser(
            one.name, help=one.asks, description=one.doc, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        sub.add_argument("--run-dir", default="", help="folder of the run; default: a new one under PHASESCOPE_RUNS")
        sub.add_argument("--resume", action="store_true", help="go on from the last checkpoint of --run-dir")
        _flags(sub, one.params, trains=True)


def _flags(sub: argparse.ArgumentParser, params: type[Params], trains: bool = False) -> None:
    """A flag per param; `train` has few of its own, so there --model may be a param, too (--param-model stays)."""
    _json_flag(sub)
    for name, field in params.model_fields.items():
        flags = [f"param-{name}"] if name in TAKEN else [name]
        flags += [name] if trains and name not in TAKEN_IN_TRAIN else []
        names = sorted({form for flag in flags for form in (f"--{flag}", f"--{flag.replace('_', '-')}")})
        text = (field.description or "").replace("%", "%%")
        sub.add_argument(*names, dest=f"param:{name}", metavar="VALUE", help=f"{text} (default {field.default})")


def _params(args: argparse.Namespace) -> dict[str, Any]:
    given = {k.partition(":")[2]: v for k, v in vars(args).items() if k.startswith("param:") and v is not None}
    return {k: None if v.lower() == "none" else v for k, v in given.items()}


# ---------------------------------------------------------------- commands


def connect() -> Any:
    """Return the running dashboard's client, else a facade of our own that computes in this process."""
    settings = settings_room.load()
    remote = running_dashboard(settings)
    if remote is not None:
        return remote
    from backend import Backend

    return Backend(settings, inline=True)


def do_list(args: argparse.Namespace) -> Any:
    """List analyses and recipes."""
    rows = [{"kind": "analysis", "name": a.name, "asks": a.asks} for a in analyses.registry().values()]
    return rows + [{"kind": "recipe", "name": r.name, "asks": r.asks} for r in recipes.registry().values()]


def do_describe(args: argparse.Namespace) -> Any:
    """Describe one by name."""
    known: Mapping[str, Any] = {**recipes.registry(), **analyses.registry()}
    if args.name not in known:
        raise BadInput(f"Describe {args.name!r}", "no such analysis or recipe", f"Known: {', '.join(sorted(known))}")
    return known[args.name].schema()


def do_models(args: argparse.Namespace) -> Any:
    """List opened models and runs."""
    with _connection() as house:
        opened = json.loads(house.models().to_json(orient="records", date_format="iso"))
        runs = [
            {"spec": f"run:{r['name']}", "state": r["state"], "checkpoints": len(r["checkpoints"])}
            for r in house.runs()
        ]
    return {"opened": opened, "runs": runs}


def do_attach(args: argparse.Namespace) -> Any:
    """Attach runs by their path."""
    with _connection() as house:
        return house.attach(str(Path(args.path).expanduser().absolute()))


def do_checkpoint(args: argparse.Namespace) -> Any:
    """Ask a run for a checkpoint."""
    with _connection() as house:
        return house.checkpoint_now(args.run)


def do_jobs(args: argparse.Namespace) -> Any:
    """List jobs."""
    with _connection() as house:
        return [{k: j[k] for k in ("id", "kind", "title", "state", "progress", "words")} for j in house.jobs()]


def do_transitions(args: argparse.Namespace) -> Any:
    """List the transitions of a run."""
    with _connection() as house:
        found = house.transitions(args.run)
        live = not found and house.run(args.run)["state"] in LIVE
    if args.json:
        return found
    if not found:
        return "none yet" if live else "none"
    shown = _without(found, ("run", "width_low", "width_high"))
    return [{**r, "channels": ", ".join(r["channels"][:3])} for r in shown]


def _without(rows: list[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in names} for row in rows]


def do_doctor(args: argparse.Namespace) -> Any:
    """Report on the installation."""
    from backend import doctor

    with _connection() as house:
        remote = hasattr(house, "doctor")
        found = house.doctor() if remote else doctor.report(house)
        return {"through": "the running dashboard" if remote else "the cache directly", **found}


def do_run(args: argparse.Namespace) -> Any:
    """Compute or fetch one analysis, at one step or at all."""
    if args.out:
        export.check_target(args.out)
    if args.sbatch:
        return _job_script(args)
    args.model = _from_here(args.model)
    with _connection() as house:
        steps = _all_steps(args.model) if args.step == "all" else [_whole(args.step)]
        if args.dry_run:
            plans = [_planned(house, args, step) for step in steps]
            return plans if args.json else "\n".join(_priced(plan) for plan in plans)
        asked = [_ask(house, args, step) for step in steps]  # all of them first: the workers share them
        answers = [_collect(house, one) for one in asked]
        table = pd.concat(
            [t if len(steps) == 1 else t.assign(step=s) for s, (_, t) in zip(steps, answers, strict=True)]
        )
        told = [a for a, _ in answers]
        if args.out:
            export.write(table, args.out, {"keys": [a["key"] for a in told], **_about(house, told)})
    if args.json:
        return {"results": told, "rows": len(table), "out": args.out, **({} if args.out else {"table": _rows(table)})}
    for line in told:
        step = f"  step {line['step']}" if line["step"] is not None else ""
        print(f"{line['key']}  {line['how']}  {line['seconds']:.3g} s{step}", file=sys.stderr)
    return args.out and f"{len(table)} rows to {args.out}" or table


def _job_script(args: argparse.Namespace) -> str:
    """Write a SLURM script of this command as it was typed, with a file for its table."""
    typed = [w for w in args.typed if w not in ("--json", "--dry-run")]
    at = next(i for i, w in enumerate(typed) if w.startswith("--sb") and "--sbatch".startswith(w.partition("=")[0]))
    del typed[at : at + (1 if "=" in typed[at] else 2)]
    out = [] if args.out else ["--out", f"{args.analysis}.parquet"]
    text = slurm.script([[*slurm.PYTHON, *typed, *out]], args.analysis,
                        runs=settings_room.load().runs_elsewhere)  # fmt: skip
    try:
        Path(args.sbatch).expanduser().write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"--sbatch {args.sbatch}", (error.strerror or str(error)).lower(), "Give another file") from None
    return f"{args.sbatch}: submit it with sbatch; partition, time and memory stand at its top"


def _about(house: Any, told: list[dict[str, Any]]) -> dict[str, Any]:
    """Return where the numbers come from: what all the results of one command share."""
    record = house.record(told[0]["key"])
    return {n: record[n] for n in ("analysis", "version", "spec", "dtype", "device", "subject", "params")}


def _ask(house: Any, args: argparse.Namespace, step: int | None) -> dict[str, Any]:
    start = time.monotonic()
    ask = {"text": getattr(args, "text", ""), "ids": getattr(args, "tokens", None) or None, "params": _params(args),
           "about": _about_of(args), **({"plan": True} if args.dry_run else {})}  # fmt: skip
    answer = house.submit(args.analysis, args.model, step, **ask)
    while answer["state"] == "opening":  # again where the files change meanwhile
        _finish(house, answer["job"])
        answer = house.submit(args.analysis, args.model, step, **ask)
    return {**answer, "start": start}


def _planned(house: Any, args: argparse.Namespace, step: int | None) -> dict[str, Any]:
    """Return what a request would cost as one row; `refused` in words."""
    answer = _ask(house, args, step)
    told = answer["estimate"]
    refused = str(from_record(told["refused"])) if told["refused"] else ""
    return {"step": step, "state": answer["state"], "key": answer["key"], **told, "refused": refused}


def _priced(plan: Mapping[str, Any]) -> str:
    """Say a plan in one line."""
    step = "" if plan["step"] is None else f"step {plan['step']}: "
    if plan["refused"] or plan["state"] == "kept":
        return step + (plan["refused"] or "kept, nothing to compute")
    known = [f"about {plan['seconds']:.2g} s"] if plan["seconds"] is not None else ["time unknown"]
    if plan["memory_bytes"] is not None:
        known.append(f"{plan['memory_bytes'] / 1e6:.0f} MB beside the model ({plan['room_bytes'] / 1e6:.0f} MB free)")
    if plan["calls"] is not None:
        known.append(f"{plan['calls']} calls of the model on {plan['tokens']} tokens")
    return f"{step}{', '.join(known)} (from {plan['basis']})".replace(" (from unknown)", "")


def _collect(house: Any, answer: dict[str, Any]) -> tuple[dict[str, Any], pd.DataFrame]:
    how = "cache hit" if answer["state"] == "kept" else "computed"
    if answer["job"]:
        _finish(house, answer["job"])
    table = house.table(answer["key"])
    step = house.record(answer["key"])["step"]
    return {"key": answer["key"], "how": how, "step": step, "seconds": time.monotonic() - answer["start"]}, table


def _from_here(spec: str) -> str:
    """Return the spec with an absolute path: the dashboard works in another folder."""
    parsed = parse_spec(spec)
    path = Path(parsed.place).expanduser()
    if parsed.scheme == "tl" and parsed.place in registry.tracr.programs() and not path.exists():
        return spec
    if parsed.scheme == "hub" or (parsed.scheme == "run" and not (os.sep in parsed.place and os.path.isdir(path))):
        return spec
    return str(parsed.model_copy(update={"place": str(path.absolute())}))


def _all_steps(spec: str) -> list[int | None]:
    located = registry.locate(parse_spec(spec), settings_room.load())
    if located.step is None:
        raise BadInput(f"--step all of {spec!r}", "only a run has steps", "Leave the step out")
    return list(located.steps)


def do_train(args: argparse.Namespace) -> Any:
    """Train a recipe and say where it lies."""
    if args.resume and not args.run_dir:
        raise BadInput("--resume", "it does not say which run", "Give the run's folder with --run-dir")
    folder = str(Path(args.run_dir).expanduser().absolute()) if args.run_dir else ""
    with _term_as_ctrl_c(), _connection() as house:
        started = house.train(args.recipe, _params(args), run_dir=folder, resume=args.resume)
        ended = _finish(house, started["job"])
    return {"run": started["run"], "run_dir": ended["payload"]["run_dir"], "state": ended["state"]}


def do_diagram(args: argparse.Namespace) -> Any:
    """Train a phase diagram and return its cells."""
    with _term_as_ctrl_c():
        return diagram_cli.do(args)


def _finish(house: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Wait for a job, say how it goes on stderr, cancel it on Ctrl-C (and let it keep its state), raise its error."""
    try:
        while job["state"] not in ENDED:
            job = house.wait(job["id"], 1.0)
            if sys.stderr.isatty():
                print(f"\r{job['progress']:4.0%} {job['words'][:60]:60}", end="", file=sys.stderr)
    except KeyboardInterrupt:
        house.cancel(job["id"])
        house.wait(job["id"], PATIENCE)
        raise
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if job["state"] != "done":
        raise (
            from_record(job["error"])
            if job.get("error")
            else Broken(job["title"], f"the job was {job['state']}", "Run it again")
        )
    return job


@contextlib.contextmanager
def _term_as_ctrl_c() -> Iterator[None]:
    """Hear SIGTERM (a scheduler's, a shutdown's) as Ctrl-C: the run keeps a checkpoint and has stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def heard(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would cut the keeping short
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, heard)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _connection:
    """`with` a house that is closed at the end."""

    def __enter__(self) -> Any:
        self.house = connect()
        return self.house

    def __exit__(self, *_: Any) -> None:
        self.house.close()


def _whole(text: str | None, flag: str = "--step") -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        todo = "Give a step of the run, or `all`" if flag == "--step" else "Give a whole number"
        raise BadInput(f"{flag} {text!r}", "not a whole number", todo)
    return int(text)


def _rows(table: pd.DataFrame) -> Any:
    return json.loads(export.to_bytes(table, "json"))


def show(answer: Any, as_json: bool) -> None:
    """Print an answer: JSON for machines, aligned text for people."""
    if as_json:
        print(json.dumps(_rows(answer) if isinstance(answer, pd.DataFrame) else answer, indent=1, default=str))
    elif isinstance(answer, list):
        print(pd.DataFrame(answer).to_string(index=False) if answer else "none yet")
    elif isinstance(answer, pd.DataFrame):
        print(_shown(answer))
    elif isinstance(answer, dict):
        print(json.dumps(answer, indent=1, ensure_ascii=False, default=str))
    else:
        print(answer)


def _shown(table: pd.DataFrame) -> str:
    """Return the table as text with every column; of a long one its first rows, and how many there are."""
    short = table.head(ROWS).copy()
    for name in short.columns[[bool(short[c].map(lambda v: hasattr(v, "shape")).any()) for c in short]]:
        short[name] = [f"array of {len(v)}" for v in short[name]]
    more = f"\n{ROWS} of {len(table)} rows; --out FILE writes all" if len(table) > ROWS else ""
    return short.to_string(index=False) + more


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = parser().parse_args(argv)
    args.typed = list(sys.argv[1:] if argv is None else argv)
    try:
        show(globals()[f"do_{args.command}"](args), args.json)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # the reader (`| head`) has seen enough; nothing is left to be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except PhasescopeError as error:
        print(json.dumps(error.record()) if args.json else f"{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 1
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        told = Broken(f"Command {args.command}", f"{type(error).__name__}: {error}", DEFECT)
        print(json.dumps(told.record()) if args.json else f"{told}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
