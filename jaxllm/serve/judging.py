"""What the calls of the pages on which people judge have in common: names, and the answer to an unknown one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from jaxllm.serve.errors import ApiError
from jaxllm.serve.schema import Strict

Annotator = Annotated[str, Field(pattern=r"^\S(.{0,38}\S)?$", description="who judges, 1 to 40 characters")]
Name = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]


class NextRequest(Strict):
    annotator: Annotator
    holding: list[Name] = Field([], max_length=8, description="those that the page has and that are not judged")


@contextlib.contextmanager
def known(kind: str, name: str) -> Iterator[None]:
    """Makes a KeyError inside it the answer 404 to a call about the `kind` of this name."""
    try:
        yield
    except KeyError as error:
        raise ApiError(404, f"there is no {kind} {name!r} to do this with", param=kind) from error
