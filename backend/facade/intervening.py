"""Lists of interventions: what they mean, and those kept by name."""

from __future__ import annotations

from backend.errors import BadInput
from backend.facade.base import Base
from backend.maths import interventions
from backend.runs import saved


class Intervening(Base):
    """The part of the facade that keeps lists of interventions."""

    def read_interventions(self, edits: str) -> list[str]:
        """Return the list line by line, as it is understood. Raises BadInput that names the wrong line."""
        try:
            return [str(one) for one in interventions.parse(edits)]
        except ValueError as error:
            raise BadInput("The interventions", str(error), "Correct the line") from None

    def kept_interventions(self) -> dict[str, str]:
        """Return {name: list} of what was kept."""
        return saved.read(self.settings.runs)

    def keep_interventions(self, name: str, edits: str) -> None:
        """Keep a list by name. Raises BadInput for an unreadable or empty list, or an odd name."""
        saved.keep(self.settings.runs, name.strip(), "; ".join(self.read_interventions(edits)))

    def forget_interventions(self, name: str) -> None:
        """Drop a kept list. Raises NotFound."""
        saved.forget(self.settings.runs, name)
