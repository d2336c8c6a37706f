"""Search: BM25 over documents, by the library bm25s; and the encyclopedia of the made-up world to search in.

References: Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009. Lù, BM25S, 2024.
https://arxiv.org/abs/2407.03618
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterable

import numpy as np

from jaxllm.data.world_pages import render
from jaxllm.data.world_table import World
from jaxllm.infer.tools import Tool, ToolError

WORD = re.compile(r"\w+")
NOTHING = "nothing found"
TITLE_WEIGHT = 3  # times that a word of a title counts, whose page is most often the one that is meant


class SearchIndex:
    """Documents, found by their words; those of a title count more.

    Args:
      documents: (title, text), in an order that decides between equal scores.

    Raises:
      ImportError: without the extra `tools`.
      ValueError: when there is no document with a word.
    """

    def __init__(self, documents: Iterable[tuple[str, str]]) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise ImportError("the search tool needs bm25s: pip install -e '.[tools]'") from error
        self.documents = list(documents)
        words = [TITLE_WEIGHT * words_of(title) + words_of(text) for title, text in self.documents]
        if not any(words):
            raise ValueError("there is nothing to search: give at least one document with a word in it")
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells the terminal of every index that it builds
        self._index = bm25s.BM25(method="lucene")
        self._index.index(words, show_progress=False)

    def search(self, query: str, count: int) -> list[tuple[str, str]]:
        """The documents that share a word with the query, the best first.

        Args:
          query: any text; words that no document holds do not matter.
          count: at most so many, >= 1.
        """
        words = words_of(query)
        if not words:
            return []
        scores = self._index.get_scores(words)
        best = np.argsort(-scores, kind="stable")[:count]
        return [self.documents[i] for i in best.tolist() if scores[i] > 0]


def words_of(text: str) -> list[str]:
    """Words without regard to case.

    >>> words_of("Ada's 3rd Compass")
    ['ada', 's', '3rd', 'compass']
    """
    return WORD.findall(text.casefold())


def search_tool(documents: Iterable[tuple[str, str]] | SearchIndex, *, count: int = 1, name: str = "search",
                description: str = "Finds pages by the words of a query.", max_chars: int = 2000) -> Tool:
    """The tool `search(query)`.

    Args:
      documents: (title, text) of each, or an index of them.
      count: pages in a result, the best first; they share max_chars evenly.
      name, description: what the model reads.
      max_chars: characters of a result.

    Raises:
      ImportError: without the extra `tools`.
      ValueError: for documents without words, or a count below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}; it must be at least 1")
    index = documents if isinstance(documents, SearchIndex) else SearchIndex(documents)
    share = max(max_chars // count - 2, 1)

    def search(query: str) -> str:
        if not query.strip():
            raise ToolError("the query is empty")
        found = [text if text.startswith(title) else f"{title}\n{text}" for title, text in index.search(query, count)]
        return "\n\n".join(page if len(page) <= share else f"{page[:share - 4]} ..." for page in found) or NOTHING

    query = {"type": "string", "description": "words to look for", "maxLength": 500}
    return Tool(name, description, {"type": "object", "properties": {"query": query}, "required": ["query"]}, search,
                max_chars)


def world_encyclopedia(world: World, style: str = "encyclopedia") -> list[tuple[str, str]]:
    """A page on every person, place and thing of a world, with all its facts: also those that no document tells.

    So a search can answer about people whom no corpus of this world mentions. The pages depend on the world's seed and
    their titles alone.

    Args:
      world: from `make_world`.
      style: one of `world_pages.STYLES`.

    Returns:
      (title, text) of each, in the order of `world.entities`.
    """
    pages = []
    for entity in world.entities:
        facts = tuple(world.facts_of(entity.name).values())
        pages.append((entity.name, render(style, facts, random.Random(f"{world.seed}/encyclopedia/{entity.name}"))))
    return pages
