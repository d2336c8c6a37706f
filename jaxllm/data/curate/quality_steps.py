"""The datatrove steps of the quality classifier: one scores, one decides; needs the extra `curate`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter
from datatrove.utils.batching import batched

from jaxllm.data.curate.quality import QualityClassifier, load_classifier


class QualityScore(PipelineStep):
    """Writes `metadata["quality_score"]` and drops nothing, so that thresholds can be tried without scoring again.

    Args:
      classifier: folder written by `QualityClassifier.save`; each process reads it on first use.
      open_model: as `load_classifier` takes it, for a classifier over a model's hidden states.
      batch_size: documents scored together.
    """

    name = "quality score"
    type = "📊 - SCORE"

    def __init__(self, classifier: str | os.PathLike, open_model: Callable[[str], tuple[Callable, Any]] | None = None,
                 batch_size: int = 64) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: choose 1 or more")
        super().__init__()
        self.folder = os.fspath(classifier)
        self.open_model = open_model
        self.batch_size = batch_size
        self._classifier: QualityClassifier | None = None

    def __getstate__(self) -> dict:
        # Each worker opens the folder; a compiled model cannot be pickled.
        return {**self.__dict__, "_classifier": None}

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yields the documents in their order, with their scores."""
        if self._classifier is None:
            self._classifier = load_classifier(self.folder, self.open_model)
        for batch in batched(data, self.batch_size):
            with self.track_time("batch"):
                scores = self._classifier([document.text for document in batch])
            for document, score in zip(batch, scores.tolist(), strict=True):
                document.metadata["quality_score"] = score
                self.stat_update("quality_score", value=score)
                yield document


class QualityThreshold(BaseFilter):
    """Drops documents whose `metadata["quality_score"]` is below the threshold (reason "low_quality").

    Args:
      threshold: on the scale of the classifier; FineWeb-Edu kept 3 and more of 0 to 5.
      exclusion_writer: a writer for what is dropped.
    """

    name = "quality threshold"

    def __init__(self, threshold: float, exclusion_writer: DiskWriter | None = None) -> None:
        super().__init__(exclusion_writer)
        self.threshold = threshold

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """False and the reason when the score is below the threshold; ValueError when there is none."""
        score = doc.metadata.get("quality_score")
        if score is None:
            raise ValueError(f"document {doc.id} has no quality_score; put QualityScore before QualityThreshold")
        return True if score >= self.threshold else (False, "low_quality")
