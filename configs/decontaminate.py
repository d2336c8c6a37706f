"""Find the evaluation items whose word n-grams stand in a corpus.

    python -m experiments.decontaminate                                            # the embedded world, no download
    python -m experiments.decontaminate --workdir=runs/clean --config.corpus=documents/ \\
        --config.evaluations="('gsm8k=gsm8k_test.jsonl#question','humaneval=HumanEval.jsonl#prompt+canonical_solution')"

Expected by default, in seconds: of 60 problems that stand in the world's documents every one is found at n = 13, of 60
held-out ones none; at n = 5 the sentences that all problems share are found in both. Written:

    runs/decontaminate/contaminated.jsonl  per document: items, shares, passages (start, end, text), at n
    runs/decontaminate/items.jsonl         per item: documents that hold some of it, share found, at n
    runs/decontaminate/index/              the n-grams, for the step jaxllm.data.curate.decontaminate_steps
    runs/decontaminate/report.md .json     the table over n
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) replaces the corpus."""
    config = ConfigDict()
    # Documents to clean, as open_source takes them (docs/sources.md); "ARCHIVE.tar.xz::MEMBER" is a file in an archive.
    config.corpus = arg or "world:0:tiny"
    # Documents that cannot hold the items, for the rate of false alarms; "" measures none.
    config.control = ""
    # The field that holds the text in either.
    config.text_key = "text"
    # Evaluation sets, "NAME=FILE#FIELD+FIELD": the texts of these fields make up an item ("text" without #...). FILE is
    # .jsonl, .json, .txt (also .gz, .xz, .zst), .parquet, in an archive as above, or "problems:SEED:SPLIT:COUNT".
    config.evaluations = ("in_documents=problems:0:train:60", "held_out=problems:0:held_out:60")
    # "line": the document in line k of the corpus's file (without ids of its own) was made from item k of the first
    # set, and the report says how many were found; "": unknown.
    config.truth = ""

    # Words per gram of contaminated.jsonl, items.jsonl and index/; and all those of the table.
    config.n = 13
    config.sizes = (5, 8, 10, 13, 20)
    # An item of fewer words than n is one gram; of fewer than this it is not looked for.
    config.min_words = 8
    # Share of an item's grams from which a document counts as contaminated; 0: one gram is enough.
    config.min_share = 0.0
    # Grams in more items than this are left out (phrases that a whole set shares); 0 leaves none out.
    config.common = 0
    return config


def sweep() -> list[dict]:
    """How much of an item must stand in a document, by length of gram."""
    return [{"n": n, "min_share": share} for n in (8, 13) for share in (0.0, 0.2, 0.5, 0.8)]
