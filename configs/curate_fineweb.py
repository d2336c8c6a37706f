"""The FineWeb recipe: web pages -> clean documents, every stage in FineWeb's order with FineWeb's values.

    pip install -e '.[curate]'
    export JAXLLM_LANGUAGE_MODEL=lid.176.ftz       # 0.9 MB; docs/curate.md says how to fetch it once
    python -m experiments.curate                   # a made-up web of 2,000 pages
    python -m experiments.curate --config.input.world= --config.input.folder=crawl --workdir=runs/crawl

Expected: docs/curate.md. The run goes into WORKDIR/fineweb-<hash of everything that matters>, `latest` leads there.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) is the folder to read."""
    config = ConfigDict()
    config.input = ConfigDict({
        # Folder with .warc(.gz), .wet(.gz), .html or .jsonl(.gz) files; s3://bucket/prefix; https://host.
        "folder": arg or "",
        # A file with one path per line under the folder; needed for https, where nothing can be listed.
        "paths_file": "",
        # Which files under the folder, as a glob; "" = all.
        "pattern": "",
        # At most so many pages per task; -1 = all.
        "limit": -1,
        # In place of a folder: SEED or SEED:SIZE of the embedded world, written as a small web of so many pages.
        "world": "" if arg else "0",
        "world_pages": 2000,
        "world_files": 4})

    config.recipe = ConfigDict({
        "name": "fineweb",
        # Cuts words and sentences for the filters: "spacy" or "blingfire".
        "words": "spacy",
        # Larger pages are counted and passed over.
        "read": {"max_page_bytes": 10_000_000},
        "url": {
            "on": True,
            # 4.6 million listed hosts (UT1, Toulouse) and word lists, out of the datatrove package.
            "integrated_lists": True,
            # A file with further hosts, one a line.
            "extra_domains": "",
            # So many words of the soft list in one address drop the page.
            "soft_words": 2},
        "extract": {
            "on": True,
            # "trafilatura", "resiliparse", or "none" where pages are text already.
            "extractor": "trafilatura",
            # Trafilatura: rather less text than boilerplate.
            "favor_precision": True,
            # Trafilatura: drop lines that earlier pages of the same process had. FineWeb: True; the output then
            # depends on the number of tasks.
            "deduplicate": False,
            # Limit for one page. FineWeb: 1.
            "seconds": 10.0,
            # More pages than this share out of time fail the run.
            "max_timeout_share": 0.005},
        "language": {
            "on": True,
            # lid.176.ftz or lid.176.bin; "" = $JAXLLM_LANGUAGE_MODEL.
            "model": "",
            "languages": ("en",),
            "threshold": 0.65},
        # Gopher, table A1: shares of lines, paragraphs and characters.
        "gopher_repetition": {
            "on": True,
            "duplicate_lines": 0.3,
            "duplicate_paragraphs": 0.3,
            "duplicate_line_characters": 0.2,
            "duplicate_paragraph_characters": 0.2,
            # (n, share): characters in the most frequent n-gram; in all n-grams that occur twice.
            "top_n_grams": ((2, 0.2), (3, 0.18), (4, 0.16)),
            "duplicated_n_grams": ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))},
        # Gopher, appendix A.1.1.
        "gopher_quality": {
            "on": True,
            "min_words": 50,
            "max_words": 100_000,
            "min_mean_word_length": 3.0,
            "max_mean_word_length": 10.0,
            # Of "#" and of "...".
            "max_symbols_per_word": 0.1,
            "max_bullet_lines": 0.9,
            "max_ellipsis_lines": 0.3,
            "min_words_with_letters": 0.8,
            "min_stop_words": 2},
        "c4": {
            "on": True,
            # C4: True. FineWeb leaves this rule out: it costs 30% of the tokens.
            "lines_end_in_punctuation": False,
            "min_sentences": 5,
            "min_words_per_line": 3,
            "max_word_length": 1000,
            # Each drops the page (lorem ipsum, "{") or the line (JavaScript, cookie and privacy policies).
            "lorem_ipsum": True,
            "javascript": True,
            "curly_bracket": True,
            "policy": True},
        "fineweb": {
            "on": True,
            "min_lines_with_punctuation": 0.12,
            # The paper states 0.1; datatrove, with which the data were made, has 0.01. Used: datatrove's.
            "max_duplicate_line_characters": 0.01,
            "max_short_lines": 0.67,
            # Characters of a short line.
            "short_line": 30,
            # datatrove's, not in the paper.
            "max_newlines_per_word": 0.3},
        # Pairs of Jaccard similarity s share a bucket with probability 1 - (1 - s^hashes)^buckets: 92% at 0.8.
        "minhash": {
            "on": True,
            "n_gram": 5,
            "buckets": 14,
            "hashes": 8,
            # Bits, and "sha1" (FineWeb) or "xxhash" (faster).
            "precision": 64,
            "hash": "sha1",
            "seed": 1},
        # Email addresses and public IP addresses are replaced.
        "pii": {"on": True, "emails": True, "ips": True}})

    config.where = ConfigDict({
        # "local", "slurm" or "ray".
        "on": "local",
        # Tasks at once; 0 = one per core here, no limit on a cluster.
        "workers": 0,
        # Into how many tasks the files are dealt; 0 = one per file.
        "tasks": 0,
        # Of one task, for Slurm and Ray.
        "memory_gb": 2,
        # As sbatch takes them; env_command makes Python and this package known on a node.
        "slurm": {"time": "", "partition": "", "qos": "normal", "env_command": "", "max_array_size": 1001}})

    config.tokens = ConfigDict({
        # Write token shards of what was kept.
        "make": True,
        # An encoding's name or a tokenizer folder; it also counts tokens in the funnel. "" trains one of this size.
        "tokenizer": "",
        "vocab_size": 4096,
        "validation_fraction": 0.01})

    # Where the hashed block lists lie (37 MB, made once).
    config.cache = "~/.cache/jaxllm/curate"
    # The report's pictures are drawn from at most so many documents.
    config.report_documents = 100_000
    return config


def sweep() -> list[dict]:
    """Each stage off by itself, beside the whole."""
    stages = ("url", "language", "gopher_repetition", "gopher_quality", "c4", "fineweb", "minhash", "pii")
    return [{}] + [{f"recipe.{stage}.on": False} for stage in stages]
