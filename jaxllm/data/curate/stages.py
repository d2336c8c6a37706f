"""A recipe -> datatrove's steps: what runs over the pages, how near duplicates are found, and what is written."""

from __future__ import annotations

import dataclasses

from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig

from jaxllm.data.curate import words
from jaxllm.data.curate.pages import Pages
from jaxllm.data.curate.recipe import Recipe
from jaxllm.data.curate.steps import Count, ExtractText, Language, Pii, UrlFilter


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Where pages come from; see `pages.Pages`.

    Attributes:
      folder: local folder, s3://bucket/prefix or https://host.
      paths_file: file with a path per line; needed for https.
      pattern: glob of the files; "" for all of a known kind.
      limit: pages per task; -1 for all.
    """

    folder: str
    paths_file: str = ""
    pattern: str = ""
    limit: int = -1


@dataclasses.dataclass(frozen=True)
class Job:
    """One pass with its steps: `tasks` of them may run at once."""

    name: str
    steps: list[PipelineStep]
    tasks: int


class _UseWords(PipelineStep):
    """Makes blingfire known in the process that runs the steps behind it."""

    type, name = "setup", "words"

    def run(self, data, rank: int = 0, world_size: int = 1):
        words.use()
        yield from data


def jobs(recipe: Recipe, inputs: Inputs, folder: str, tasks: int, lists: str, tokenizer: str = "") -> list[Job]:
    """All passes in order: pages, then (with MinHash on) its four, then what is written.

    Args:
      recipe: what to do.
      inputs: where pages are.
      folder: of this run.
      tasks: the pages' files are dealt to so many tasks.
      lists: folder of `steps.prepare_lists`.
      tokenizer: counts tokens after each stage; "" for none.
    """
    made = [Job("pages", _pages(recipe, inputs, folder, lists, tokenizer), tasks)]
    final: list[PipelineStep] = [JsonlReader(f"{folder}/work/pages")]
    if recipe.minhash.on:
        made += _minhash(recipe, folder, tasks)
        final += [MinhashDedupFilter(f"{folder}/work/minhash/remove", _writer(folder, "minhash"),
                                     load_cluster_sizes=True, load_cluster_ids=True),
                  Count("minhash", _writer(folder, "minhash", "samples"), tokenizer)]
    if recipe.pii.on:
        final += [Pii(recipe.pii), Count("pii", _writer(folder, "pii", "samples"), tokenizer)]
    final += [JsonlWriter(f"{folder}/work/documents")]
    return [*made, Job("documents", final, tasks)]


def _pages(recipe: Recipe, inputs: Inputs, folder: str, lists: str, tokenizer: str) -> list[PipelineStep]:
    """Reading and every filter that looks at one page."""
    language = words.LANGUAGE if recipe.words == "blingfire" else "en"
    r, q, c, f = recipe.gopher_repetition, recipe.gopher_quality, recipe.c4, recipe.fineweb
    # Words are cut once: the repetition and quality filters see the same text, which datatrove remembers.
    stages = {
        "url": lambda drop: UrlFilter(recipe.url, lists, drop),
        "extract": lambda drop: ExtractText(recipe.extract, drop),
        "language": lambda drop: Language(recipe.language, drop),
        "gopher_repetition": lambda drop: GopherRepetitionFilter(
            r.duplicate_lines, r.duplicate_paragraphs, r.duplicate_line_characters, r.duplicate_paragraph_characters,
            r.top_n_grams, r.duplicated_n_grams, drop, language),
        "gopher_quality": lambda drop: GopherQualityFilter(
            q.min_words, q.max_words, q.min_mean_word_length, q.max_mean_word_length, q.max_symbols_per_word,
            q.max_bullet_lines, q.max_ellipsis_lines, q.min_words_with_letters, q.min_stop_words,
            exclusion_writer=drop, language=language),
        "c4": lambda drop: C4QualityFilter(
            drop, filter_no_terminal_punct=c.lines_end_in_punctuation, min_num_sentences=c.min_sentences,
            min_words_per_line=c.min_words_per_line, max_word_length=c.max_word_length,
            filter_lorem_ipsum=c.lorem_ipsum, filter_javascript=c.javascript, filter_curly_bracket=c.curly_bracket,
            filter_policy=c.policy, language=language),
        "fineweb": lambda drop: FineWebQualityFilter(
            drop, line_punct_thr=f.min_lines_with_punctuation, short_line_thr=f.max_short_lines,
            short_line_length=f.short_line, char_duplicates_ratio=f.max_duplicate_line_characters,
            new_line_ratio=f.max_newlines_per_word, language=language)}
    steps: list[PipelineStep] = [Pages(inputs.folder, recipe.read, inputs.paths_file, inputs.pattern, inputs.limit),
                                 Count("read")]
    if recipe.words == "blingfire":
        steps.append(_UseWords())
    for name, make in stages.items():
        if getattr(recipe, name).on:
            # Before extraction there is markup, whose tokens tell nothing.
            counted = "" if name == "url" else tokenizer
            steps += [make(_writer(folder, name)), Count(name, _writer(folder, name, "samples"), counted)]
    return [*steps, JsonlWriter(f"{folder}/work/pages")]


def _minhash(recipe: Recipe, folder: str, tasks: int) -> list[Job]:
    settings, work = recipe.minhash, f"{folder}/work/minhash"
    config = MinhashConfig(n_grams=settings.n_gram, num_buckets=settings.buckets, hashes_per_bucket=settings.hashes,
                           seed=settings.seed, hash_config=HashConfig(settings.precision, settings.hash))
    signature = MinhashDedupSignature(f"{work}/signatures", config, "en")
    if recipe.words == "blingfire":
        signature.word_tokenizer = words.Blingfire()
    buckets = MinhashDedupBuckets(f"{work}/signatures", f"{work}/buckets", config=config)
    cluster = MinhashDedupCluster(f"{work}/buckets", f"{work}/remove", config, save_cluster_id=True,
                                  save_cluster_size=True)
    # Signatures and removal must see the same files with the same number of tasks.
    return [Job("signatures", [JsonlReader(f"{folder}/work/pages"), signature], tasks),
            Job("buckets", [buckets], settings.buckets), Job("clusters", [cluster], 1)]


def _writer(folder: str, stage: str, what: str = "dropped") -> JsonlWriter:
    return JsonlWriter(f"{folder}/{what}/{stage}")
