"""Filter ladder, planted pages: each stage of a recipe against the truth that a made-up web was written with."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import pathlib

import numpy as np
from ml_collections import ConfigDict

from experiments import report
from experiments.curation_report import documents
from experiments.filter_ladder_minhash import Pairs, match_picture, match_table, read_pairs
from experiments.filter_ladder_numbers import word_f1
from experiments.findings import Findings, Table
from jaxllm.data import world, world_web
from jaxllm.data.curate import extractor, recipe, run, steps
from jaxllm.data.curate.stages import Inputs
from jaxllm.evals.intervals import bootstrap, share, spread

PAGE_STAGES = recipe.STAGES[1:-2]  # url ... fineweb: they look at one page
RECIPES = {"fineweb": recipe.fineweb, "fast": recipe.fast}
_SAME = ("minhash", "either")


@dataclasses.dataclass
class Seen:
    """A planted page and what became of it.

    Attributes:
      truth: its line of truth.jsonl.
      stage: the stage that dropped it, "" for a kept one.
      before: text when all page filters had passed it; None where one dropped it.
      after: text of the written document; None where it was dropped.
    """

    truth: dict
    stage: str = "?"
    before: str | None = None
    after: str | None = None


def section(config: ConfigDict, workdir: pathlib.Path) -> Findings:
    """Precision and recall of every stage, extraction, personal data and MinHash, per recipe, over all seeds."""
    found = Findings("Planted pages: each stage against the truth")
    settings = config.planted
    for name in settings.recipes:
        seen: list[Seen] = []
        pairs: list[Pairs] = []
        for seed in settings.seeds:
            folder, settled = curate_web(config, workdir, name, seed)
            one = observe(workdir / f"web-{seed}", folder)
            seen += one
            pairs.append(read_pairs(folder, settled, settings.least_jaccard))
            print(f"planted: {name}, seed {seed}: {len(one):,} pages, {sum(s.stage == '' for s in one):,} kept",
                  flush=True)
        counted = {"stages": stage_counts(seen), "kinds": kind_counts(seen), "pii": pii_counts(seen)}
        matched, bins = match_table(name, pairs, settled.minhash, config.planted.bins)
        found.tables += [stages_table(name, counted["stages"], clean_counts(seen)), kinds_table(name, counted["kinds"]),
                         pii_table(name, counted["pii"]), matched]
        found.pictures += [(f"MinHash against theory, {name}", match_picture(bins, settled.minhash)),
                           (f"What became of each kind of page, {name}", kinds_picture(counted["kinds"]))]
        found.numbers[name] = counted | {"clean": clean_counts(seen), "minhash_bins": bins,
                                         "pages": len(seen), "seeds": list(settings.seeds)}
    table, numbers = extraction(config)
    found.tables.append(table)
    found.numbers["extraction"] = numbers
    return found


def curate_web(config: ConfigDict, workdir: pathlib.Path, name: str, seed: int) -> tuple[pathlib.Path, recipe.Recipe]:
    """Writes the web of a seed and curates it, unless that is done; returns the run's folder and the recipe."""
    settings, web = config.planted, workdir / f"web-{seed}"
    if not (web / "truth.jsonl").exists():
        world_web.write_web(world.make_world(seed, settings.world), web, seed=seed, pages=settings.pages,
                            files=settings.files)
    settled = with_blocked(RECIPES[name](), workdir, config.language_model)
    return run.curate(settled, Inputs(str(web), pattern="*.warc.gz"), workdir / f"{name}-{seed}",
                      run.Where(workers=config.workers), cache=config.cache, progress=False), settled


def with_blocked(settled: recipe.Recipe, workdir: pathlib.Path, model: str = "") -> recipe.Recipe:
    """The recipe with the made-up web's blocked hosts in its URL filter."""
    path = workdir / "blocked_domains.txt"
    workdir.mkdir(parents=True, exist_ok=True)
    report.write_text(path, "\n".join(world_web.BLOCKED_DOMAINS) + "\n")
    return dataclasses.replace(settled, url=dataclasses.replace(settled.url, extra_domains=str(path)),
                               language=dataclasses.replace(settled.language, model=model))


def observe(web: pathlib.Path, folder: pathlib.Path) -> list[Seen]:
    """Every planted page with its fate in the run, by the id of its record.

    Raises:
      ValueError: a page of the truth is neither kept nor dropped, or one is both.
    """
    with open(web / "truth.jsonl", encoding="utf-8") as file:
        seen = {row["record_id"]: Seen(row) for row in map(json.loads, file)}
    for row in documents(folder / "work" / "pages", 10**9):
        seen[row["id"]].before = row["text"]
    for stage in ("", *recipe.STAGES):
        source = folder / "dropped" / stage if stage else folder / "documents"
        for row in documents(source, 10**9):
            page = seen[row["id"]]
            if page.stage != "?":
                raise ValueError(f"{folder}: the page {row['id']} is in {stage or 'documents'} and in "
                                 f"{page.stage or 'documents'}; remove the folder and run again")
            page.stage = stage
            if not stage:
                page.after = row["text"]
    if missing := [key for key, page in seen.items() if page.stage == "?"]:
        raise ValueError(f"{folder}: {len(missing)} of {len(seen)} pages are neither kept nor dropped, {missing[0]} "
                         "for one; remove the folder and run again")
    return list(seen.values())


def stage_counts(seen: list[Seen]) -> dict[str, dict[str, int]]:
    """For each stage how many pages it dropped, how many of them rightly, how many it should have dropped."""
    counts = {}
    for stage in PAGE_STAGES:
        dropped = [s for s in seen if s.stage == stage]
        fated = [s for s in seen if s.truth["fate"] == stage]
        counts[stage] = {
            "dropped": len(dropped), "right": sum(s.truth["fate"] == stage for s in dropped),
            "trash": sum(s.truth["fate"] not in ("keep", *_SAME) for s in dropped), "fated": len(fated),
            "here": sum(s.stage == stage for s in fated), "anywhere": sum(s.stage != "" for s in fated)}
    return counts | {"minhash": _minhash_counts(seen)}


def _minhash_counts(seen: list[Seen]) -> dict[str, int]:
    """Copies may be represented by any of them: of n sure copies that arrive, n - 1 should go, whichever.

    A drop is right when a surely or possibly equal member of its group survives.
    """
    groups: dict[str, list[Seen]] = collections.defaultdict(list)
    for s in seen:
        if s.truth["group"] and s.before is not None:
            groups[s.truth["group"]].append(s)
    counts = {"dropped": sum(s.stage == "minhash" for s in seen), "right": 0, "fated": 0, "here": 0}
    for members in groups.values():
        sure = [s for s in members if s.truth["fate"] == "minhash" or s.truth["kind"] == "article"]
        alike = [s for s in members if s.truth["fate"] in _SAME or s.truth["kind"] == "article"]
        gone = sum(s.stage == "minhash" for s in sure)
        counts["fated"] += max(0, len(sure) - 1)
        counts["here"] += min(gone, max(0, len(sure) - 1))
        if any(s.stage == "" for s in alike):
            counts["right"] += sum(s.stage == "minhash" for s in alike)
    return counts | {"trash": counts["right"], "anywhere": counts["here"]}


def clean_counts(seen: list[Seen]) -> dict[str, int]:
    """Pages that should be kept: how many pass the page filters, and where the others fall."""
    clean = [s for s in seen if s.truth["fate"] == "keep"]
    lost = collections.Counter(s.stage for s in clean if s.before is None)
    return {"pages": len(clean), "passed": sum(s.before is not None for s in clean), **lost}


def kind_counts(seen: list[Seen]) -> dict[str, dict[str, int]]:
    """Kind of page -> stage that dropped it ("" for none) -> pages."""
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for s in seen:
        counts[s.truth["kind"]][s.stage] += 1
    return {kind: dict(counts[kind]) for kind in world_web.KINDS if kind in counts}


def pii_counts(seen: list[Seen]) -> dict[str, tuple[int, int]]:
    """Kind of planted value -> (gone from the document, stood in the text before); values found whole only."""
    counts: dict[str, list[int]] = {}
    for s in seen:
        if s.after is None or s.before is None:
            continue
        for kind, value in itertools.chain(s.truth["pii"], s.truth["decoys"]):
            gone, stood = counts.setdefault(kind, [0, 0])
            if value in s.before:
                counts[kind] = [gone + (value not in s.after), stood + 1]
    return {kind: tuple(pair) for kind, pair in sorted(counts.items())}


def stages_table(name: str, counts: dict, clean: dict[str, int]) -> Table:
    """Precision and recall of each stage."""
    rows = [["stage", "dropped", "precision", "dropped pages that are trash", "recall here", "recall at any stage"]]
    for stage, c in counts.items():
        rows.append([stage, f"{c['dropped']:,}", share(c["right"], c["dropped"]), share(c["trash"], c["dropped"]),
                     share(c["here"], c["fated"]), share(c["anywhere"], c["fated"])])
    lost = ", ".join(f"{stage} {count}" for stage, count in clean.items() if stage not in ("pages", "passed"))
    return Table(f"Stages, {name}", rows,
                 f"Clean pages that pass every page filter: {share(clean['passed'], clean['pages'])}; lost at "
                 f"{lost or 'none'}. Precision: the dropped page was fated to this very stage; for minhash: an equal "
                 "of it survives. Wilson intervals, pages of all seeds together.")


def kinds_table(name: str, counts: dict[str, dict[str, int]]) -> Table:
    """Where each kind of page ends."""
    rows = [["kind", "pages", "kept", "dropped at"]]
    for kind, stages in counts.items():
        places = sorted(((n, stage) for stage, n in stages.items() if stage), reverse=True)
        rows.append([kind, f"{sum(stages.values()):,}", share(stages.get("", 0), sum(stages.values())),
                     ", ".join(f"{stage} {n:,}" for n, stage in places)])
    return Table(f"Kinds of page, {name}", rows)


def pii_table(name: str, counts: dict[str, tuple[int, int]]) -> Table:
    """Recall on what should be replaced, and false replacements of what should not."""
    meaning = {"email": "recall", "ip": "recall", "phone": "left by design: replaced",
               "private_ip": "false replacements", "version": "false replacements"}
    rows = [["planted value", "what is counted", "share replaced"]]
    rows += [[kind, meaning[kind], share(*pair)] for kind, pair in counts.items()]
    return Table(f"Personal data, {name}", rows, "Of the values that stood whole in the text before this stage.")


def kinds_picture(counts: dict[str, dict[str, int]]) -> str:
    """A bar a kind, cut by where its pages ended."""
    kinds, stages = list(counts)[::-1], ["", *PAGE_STAGES, "minhash"]

    def draw(axes) -> None:
        left = np.zeros(len(kinds))
        for i, stage in enumerate(stages):
            width = np.array([100 * counts[kind].get(stage, 0) / sum(counts[kind].values()) for kind in kinds])
            axes.barh(kinds, width, left=left, label=stage or "kept", color="#2a6fdb" if not stage else f"C{i}",
                      alpha=1.0 if not stage else 0.75)
            left += width
        axes.set(xlabel="% of the pages of this kind", xlim=(0, 100))
        axes.legend(frameon=False, ncols=1, loc="center left", bbox_to_anchor=(1.0, 0.5))

    return report.picture(draw, height=4.6, grid="x")


def extraction(config: ConfigDict) -> tuple[Table, dict]:
    """Word F1 of the extractors on article pages against the text that the page was made from."""
    settings = config.planted
    pages = [page for seed in settings.seeds for page in itertools.islice(
        (p for p in world_web.pages(world.make_world(seed, settings.world), seed, settings.pages)
         if p.kind in ("article", "pii")), settings.extraction_pages)]
    rows, numbers = [["extractor", "word F1 [95%, bootstrap over pages]", "worst page"]], {}
    for name, made in RECIPES.items():
        extract = extractor.load(made().extract.extractor, steps.options_of(made().extract))
        scores = np.array([word_f1(page.text, extract(page.html.decode(page.charset))) for page in pages])
        numbers[name] = bootstrap(scores, lambda x: float(x.mean()), config.bootstrap)
        rows.append([f"{made().extract.extractor} ({name})", spread(numbers[name], 4), f"{scores.min():.3f}"])
        print(f"planted: {made().extract.extractor} on {len(pages)} article pages: {numbers[name][0]:.4f}", flush=True)
    return Table("Extraction on planted articles", rows, f"{len(pages):,} article pages of "
                 f"{len(settings.seeds)} webs."), numbers
