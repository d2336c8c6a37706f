"""The unit of text that everything before tokens deals in."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Document:
    """A text with an identity: `id` is the record's own, or else its place in the source."""

    text: str
    id: str
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
