"""Open a model: `from backend.models.open import open_model`."""

from backend.models.fidelity import fidelity
from backend.models.load import open_model
from backend.models.model import LoadedModel

__all__ = ["LoadedModel", "fidelity", "open_model"]
