"""The datatrove step that finds evaluation items in documents; needs the extra `curate`."""

from __future__ import annotations

import os

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from jaxllm.data.curate.decontaminate import NgramIndex, load_index, scan


class Decontaminate(BaseFilter):
    """Drops documents that share n-grams with an evaluation set (reason "contaminated"), or only marks them.

    Either way `metadata["contaminated_by"]` lists the items, and `metadata["contaminated_spans"]` for each of them
    the (start, end) of the shared passages, in characters. Clean documents get neither key.

    Args:
      index: folder written by `jaxllm.data.curate.decontaminate.save_index`; each process maps it on first use.
      min_share: of an item's n-grams that a document must hold, 0 to 1; 0: one gram is enough.
      drop: False keeps the documents.
      exclusion_writer: a writer for what is dropped.
    """

    name = "n-gram decontamination"

    def __init__(self, index: str | os.PathLike, min_share: float = 0.0, drop: bool = True,
                 exclusion_writer: DiskWriter | None = None) -> None:
        if not 0 <= min_share <= 1:
            raise ValueError(f"min_share={min_share}: choose 0 to 1")
        super().__init__(exclusion_writer)
        self.folder = os.fspath(index)
        self.min_share = min_share
        self.drop = drop
        self._index: NgramIndex | None = None
        load_index(self.folder)  # a wrong folder stops here, not in every worker

    def __getstate__(self) -> dict:
        # Workers map the files themselves; a pickled array would be a copy in each.
        return {**self.__dict__, "_index": None}

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """False and the reason when the document is contaminated and `drop` is set."""
        if self._index is None:
            self._index = load_index(self.folder)
        matches = scan(doc.text, self._index, self.min_share)
        if not matches:
            return True
        doc.metadata["contaminated_by"] = [self._index.items[match.item] for match in matches]
        doc.metadata["contaminated_spans"] = [[list(span) for span in match.spans] for match in matches]
        self.stat_update("contaminated")
        return (False, "contaminated") if self.drop else True
