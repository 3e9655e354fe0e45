from __future__ import annotations
from collections.abc import Mapping
from dafx_actors.models import Model


"""x"""


def model_from_environment(environ: Mapping[str, str], name: str | None = None) -> Model:
    raise NotImplementedError
