"""Web pages -> clean documents -> token shards, by the FineWeb recipe; with a report of what each stage did.

    pip install -e '.[curate]'
    python -m experiments.curate                                     # a small made-up web, nothing downloaded
    python -m experiments.curate --config=configs/curate_fast.py --config.input.folder=crawl --workdir=runs/crawl
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib

from ml_collections import ConfigDict

from experiments import launch, report
from experiments.findings import markdown_table


def main(config: ConfigDict, workdir: str) -> None:
    """Curates, reports, and tokenises what was kept.

    Raises:
      ModuleNotFoundError: the extra is not installed. ValueError, FileNotFoundError: as `run.curate` says.
    """
    missing = [name for name in ("datatrove", "warcio", "spacy", "cchardet") if not importlib.util.find_spec(name)]
    if missing:
        raise ValueError(f"{', '.join(missing)} not installed: pip install -e '.[curate]'")
    from experiments import curation_report
    from jaxllm.data.curate import funnel, recipe, run

    settings = recipe.from_mapping(config.recipe.to_dict())
    where = run.Where(**{**config.where.to_dict(), "slurm": config.where.slurm.to_dict()})
    inputs = find_inputs(config, pathlib.Path(workdir))
    blocked = pathlib.Path(inputs.folder) / "blocked_domains.txt"
    if config.input.world and not settings.url.extra_domains and blocked.exists():  # no real list knows made-up hosts
        settings = dataclasses.replace(settings, url=dataclasses.replace(settings.url, extra_domains=str(blocked)))
    folder = run.curate(settings, inputs, workdir, where, cache=config.cache, tokenizer=config.tokens.tokenizer)
    if not (folder / "funnel.json").exists():
        print(f"submitted; the same command checks and reports when the jobs are done: {folder}")
        return
    rows = funnel.read(folder, settings)
    name = f"{settings.name} on {inputs.paths_file or inputs.folder}"
    curation_report.write(folder, rows, f"Curation: {name}", config.report_documents,
                          f"{rows.stages[0].documents:,} pages read, {rows.stages[-1].documents:,} documents kept")
    print(markdown_table(curation_report.funnel_rows(rows)))
    point_to(folder, pathlib.Path(workdir) / "latest")
    if config.tokens.make:
        cores = os.cpu_count() or 1
        write_shards(config.tokens, folder, processes=min(config.where.workers or cores, cores))
    print(f"written: {folder}: documents, dropped, report.html" + (", tokens" if config.tokens.make else ""))


def find_inputs(config: ConfigDict, workdir: pathlib.Path):
    """What to read; a made-up web is written into the run folder first.

    Raises:
      ValueError: input.folder and input.world name two sources, or neither does.
    """
    from jaxllm.data.curate.stages import Inputs

    given = config.input
    if bool(given.folder) == bool(given.world):
        raise ValueError("name one of input.folder (pages on disk, s3:// or https://) and input.world (made-up pages); "
                         "set the other to ''")
    if given.folder:
        return Inputs(given.folder, given.paths_file, given.pattern, given.limit)
    from jaxllm.data import world, world_web

    seed, _, size = given.world.partition(":")
    if not seed.isdecimal() or (size or "small") not in world.SIZES:
        raise ValueError(f"input.world is {given.world!r}; write SEED or SEED:SIZE, with a size of "
                         f"{', '.join(world.SIZES)}")
    web = workdir / f"web-{seed}-{size or 'small'}-{given.world_pages}"
    if not (web / "truth.jsonl").exists():
        world_web.write_web(world.make_world(int(seed), size or "small"), web, seed=int(seed),
                            pages=given.world_pages, files=given.world_files)
    report.write_text(web / "blocked_domains.txt", "\n".join(world_web.BLOCKED_DOMAINS) + "\n")
    return Inputs(str(web), pattern="*.warc.gz", limit=given.limit)


def write_shards(config: ConfigDict, folder: pathlib.Path, processes: int) -> None:
    """Token shards of the kept documents under `tokens/`, by the named tokenizer or one trained on them."""
    from jaxllm.data.sources import open_source
    from jaxllm.data.tokenize_corpus import tokenize_corpus
    from jaxllm.data.tokenizer import train_tokenizer

    documents = open_source(str(folder / "documents"))
    tokenizer = config.tokenizer
    if not tokenizer:
        tokenizer = str(folder / "tokenizer")
        if not os.path.exists(tokenizer):
            train_tokenizer((document.text for document in documents), config.vocab_size, "gpt4").save(tokenizer)
    train, _ = tokenize_corpus(documents, tokenizer, folder / "tokens",
                               validation_fraction=config.validation_fraction, processes=processes)
    index = json.loads((train / "index.json").read_text())
    print(f"training shards: {index['tokens']:,} tokens of {index['documents']:,} documents")


def point_to(folder: pathlib.Path, link: pathlib.Path) -> None:
    """`latest` leads to the newest run."""
    temporary = link.with_name(f"{link.name}.tmp-{os.getpid()}")
    os.symlink(os.path.relpath(folder, link.parent), temporary)
    os.replace(temporary, link)




if __name__ == "__main__":
    launch.run(main, default_config="configs/curate_fineweb.py")
