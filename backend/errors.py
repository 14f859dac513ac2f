"""Every error a user may meet.

    PhasescopeError
    |-- BadInput          the request cannot be served as asked (exit code 2, HTTP 400)
    |   |-- NotFound      a name, path, step or key that is not there (HTTP 404)
    |   |-- Unsupported   a real thing that Phasescope cannot read (architecture, pickled code, ...)
    |   `-- Unfit         the model cannot do what the analysis needs
    |-- Cancelled         a person or a shutdown stopped the job
    |-- Busy              another process holds what was asked for
    `-- Broken            our own or the machine's fault (exit code 1, HTTP 500)

A message has three parts: what was asked, what was found, what to do.
"""

from __future__ import annotations


class PhasescopeError(Exception):
    """Carry (asked, found, todo) and print them as one sentence each."""

    exit_code = 1
    http_status = 500

    def __init__(self, asked: str, found: str, todo: str):
        super().__init__(asked, found, todo)
        self.asked, self.found, self.todo = asked, found, todo

    def __str__(self) -> str:
        return f"{self.asked}: {self.found}. {self.todo}."

    def record(self) -> dict[str, str]:
        """Return a JSON-able record {error, asked, found, todo}."""
        return {"error": type(self).__name__, "asked": self.asked, "found": self.found, "todo": self.todo}


class BadInput(PhasescopeError):
    exit_code = 2
    http_status = 400


class NotFound(BadInput):
    http_status = 404


class Unsupported(BadInput):
    pass


class Unfit(BadInput):
    pass


class Cancelled(PhasescopeError):
    http_status = 409


class Busy(PhasescopeError):
    http_status = 409


class Broken(PhasescopeError):
    pass


def from_record(record: dict[str, str]) -> PhasescopeError:
    """Rebuild the error that `record()` described; an unknown class becomes Broken."""
    kinds = {c.__name__: c for c in (BadInput, NotFound, Unsupported, Unfit, Cancelled, Busy, Broken)}
    return kinds.get(record.get("error", ""), Broken)(
        record.get("asked", "?"), record.get("found", "?"), record.get("todo", "Look at the job's story")
    )
