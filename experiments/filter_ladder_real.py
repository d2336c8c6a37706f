"""Filter ladder, real data that nobody here wrote: extraction, languages, personal data, human labels, real WARCs."""

from __future__ import annotations

import collections
import json
import lzma
import pathlib
import tarfile
import tempfile
import time
import urllib.parse

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from ml_collections import ConfigDict

from experiments import report
from experiments.curation_report import documents, funnel_picture, funnel_rows
from experiments.filter_ladder_numbers import benchmark_scores, shingle_counts
from experiments.filter_ladder_planted import RECIPES
from experiments.findings import Findings, Table
from jaxllm.data.curate import extractor, funnel, recipe, run, stages, steps, words
from jaxllm.evals.intervals import bootstrap, difference, share, spread, wilson

FILES = {"extraction": "html/article_extraction_benchmark.tar.xz",
         "language": "lang/lingua_sentences_24_languages.tar.xz", "pii": "pii/presidio_synth_v2.json.xz",
         "quality": "quality/dclm_majority_218.jsonl.xz",
         "crawl": "html/commoncrawl_whirlwind.tar.xz", "crawl2": "html/dolma_sample-0000.warc.gz"}
EXTRACTORS = {"trafilatura, favor_precision": ("trafilatura", {"favor_precision": True, "deduplicate": False}),
              "trafilatura, its defaults": ("trafilatura", {}),
              "resiliparse": ("resiliparse", {"alt_texts": False, "list_bullets": False})}
COVERED = {"EMAIL_ADDRESS": "emails", "IP_ADDRESS": "ips"}


def section(config: ConfigDict, workdir: pathlib.Path) -> Findings | None:
    """All measurements on the folder of real data; None, said aloud, without one.

    Raises:
      FileNotFoundError: the folder lacks a file; names it.
    """
    if not config.real_data:
        print("real: left out: set JAXLLM_TEST_DATA or config.real_data to the folder of labelled data", flush=True)
        return None
    root = pathlib.Path(config.real_data)
    if missing := [name for name in FILES.values() if not (root / name).exists()]:
        raise FileNotFoundError(f"{root} lacks {', '.join(missing)}; leave \"real\" out of config.sections, or name "
                                "another folder in config.real_data")
    found = Findings("Real data: labels that others gave")
    for part in (extraction, language, pii, quality):
        part(config, root, found)
        print(f"real: {part.__name__} done", flush=True)
    crawl(config, root, workdir, found)
    return found


def extraction(config: ConfigDict, root: pathlib.Path, found: Findings) -> None:
    """The article extraction benchmark by its own metric, and the speed of each extractor."""
    pages, truth = {}, {}
    with tarfile.open(root / FILES["extraction"], "r:xz") as archive:
        for member in archive:
            content = archive.extractfile(member).read().decode("utf-8")
            if member.name.endswith("ground-truth.json"):
                truth = json.loads(content)
            else:
                pages[pathlib.PurePosixPath(member.name).stem] = content
    names = sorted(truth)[:config.real.pages or None]
    rows = [["extractor", "F1 [95%, bootstrap over pages]", "precision", "recall", "pages without text", "pages/s"]]
    counts: dict[str, np.ndarray] = {}
    for name, (kind, options) in EXTRACTORS.items():
        extract = extractor.load(kind, options)
        extract(pages[names[0]])  # what is loaded late
        begun = time.perf_counter()
        texts = [extract(pages[key]) for key in names]
        rate = len(names) / (time.perf_counter() - begun)
        counts[name] = np.array([shingle_counts(truth[key]["articleBody"], text)
                                 for key, text in zip(names, texts, strict=True)])
        scores = bootstrap(counts[name], lambda x: benchmark_scores(x)[2], config.bootstrap)
        precision, recall, _ = benchmark_scores(counts[name])
        empty = sum(not text.strip() for text in texts)
        rows.append([name, spread(scores), f"{precision:.3f}", f"{recall:.3f}", f"{empty:,}", f"{rate:.1f}"])
        found.numbers.setdefault("extraction", {})[name] = {
            "f1": scores, "precision": precision, "recall": recall, "empty": empty, "pages_per_second": rate}
    first, *others = counts
    gaps = []
    for name in others:
        both = np.concatenate([counts[first], counts[name]], axis=1)
        gaps.append(f"{name}: " + spread(bootstrap(both, lambda x: benchmark_scores(x[:, 3:])[2]
                                                   - benchmark_scores(x[:, :3])[2], config.bootstrap)))
    found.tables.append(Table("Extraction, labelled pages", rows, f"{len(names)} pages, 4-gram shingles. F1 less that "
                              f"of {first}, paired by page: {'; '.join(gaps)}. One process."))


def language(config: ConfigDict, root: pathlib.Path, found: Findings) -> None:
    """The language of single sentences, and what the filter of the recipe would keep as English."""
    settings = recipe.Language(model=config.language_model)
    step = steps.Language(settings)
    predicted: dict[str, list[tuple[str, bool]]] = {}
    with tarfile.open(root / FILES["language"], "r:xz") as archive:
        for member in archive:
            lines = archive.extractfile(member).read().decode("utf-8").splitlines() if member.isfile() else []
            for i, line in enumerate([line for line in lines if line.strip()][:config.real.sentences or None]):
                doc = Document(line, str(i))
                (best, _), _ = step.model.predict(doc)
                predicted.setdefault(pathlib.PurePosixPath(member.name).stem, []).append(
                    (best, step.filter(doc) is True))
    rows = [["language", "named rightly", f"kept as English at {settings.threshold}", "most frequent mistakes"]]
    total = [0, 0]
    for code, answers in sorted(predicted.items()):
        right, kept = sum(best == code for best, _ in answers), sum(keep for _, keep in answers)
        total = [total[0] + right, total[1] + len(answers)]
        wrong = collections.Counter(best for best, _ in answers if best != code).most_common(3)
        rows.append([code, share(right, len(answers)), share(kept, len(answers)),
                     ", ".join(f"{name} {count}" for name, count in wrong)])
        found.numbers.setdefault("language", {})[code] = {"right": right, "kept": kept, "of": len(answers)}
    others = [keep for code, answers in predicted.items() if code != "en" for _, keep in answers]
    rows.insert(1, ["all", share(*total), f"not English: {share(sum(others), len(others))}", ""])
    found.tables.append(Table("Language, single sentences", rows, "lid.176.ftz. Sentences are far shorter than pages, "
                              "which the filter sees; this is its hard case."))

    def draw(axes) -> None:
        codes = sorted(found.numbers["language"], key=lambda c: -found.numbers["language"][c]["right"])
        values = [found.numbers["language"][code] for code in codes]
        axes.bar(codes, [100 * v["right"] / v["of"] for v in values], color="#2a6fdb")
        axes.set(ylabel="% named rightly", xlabel="language of the sentence")
    found.pictures.append(("Language, single sentences", report.picture(draw, grid="y")))


def pii(config: ConfigDict, root: pathlib.Path, found: Findings) -> None:
    """Labelled emails and addresses that are replaced, and what else is."""
    with lzma.open(root / FILES["pii"], "rt", encoding="utf-8") as file:
        rows = json.load(file)
    step = steps.Pii(recipe.Pii())
    replacers = {"emails": step.emails_replacer, "ips": step.ip_replacer}
    recall, precision = collections.defaultdict(lambda: [0, 0]), collections.defaultdict(lambda: [0, 0])
    missed = collections.defaultdict(list)
    for row in rows:
        hits = {kind: [m.span() for m in replacer.regex.finditer(row["full_text"])
                       if replacer.validator is None or replacer.validator(m.group(0))]
                for kind, replacer in replacers.items()}
        for span in row["spans"]:
            kind = COVERED.get(span["entity_type"])
            inside = [a <= span["start_position"] and span["end_position"] <= b for a, b in hits.get(kind, ())]
            recall[span["entity_type"]][0] += any(inside)
            recall[span["entity_type"]][1] += 1
            if kind and not any(inside):
                missed[span["entity_type"]].append(span["entity_value"])
        for kind, spans in hits.items():
            labelled = [(s["start_position"], s["end_position"]) for s in row["spans"]
                        if COVERED.get(s["entity_type"]) == kind]
            precision[kind][0] += sum(any(a < end and start < b for start, end in labelled) for a, b in spans)
            precision[kind][1] += len(spans)
    table = [["labelled as", "replaced whole", "of what is replaced, labelled so"]]
    for name, kind in COVERED.items():
        table.append([name, share(*recall[name]), share(*precision[kind])])
    table += [[f"{name} (not covered, as in FineWeb)", share(*recall[name]), ""] for name in sorted(recall)
              if name in ("PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "US_SSN", "PERSON", "STREET_ADDRESS")]
    examples = "; ".join(f"{name}: {', '.join(sorted(set(values))[:6])}" for name, values in sorted(missed.items()))
    found.tables.append(Table("Personal data, labelled sentences", table,
                              f"{len(rows):,} sentences. Missed: {examples or 'none'}. An address that is not public "
                              "stays by design."))
    found.numbers["pii"] = {"recall": dict(recall), "precision": dict(precision), "missed": dict(missed)}


def filters_of(settled: recipe.Recipe) -> dict[str, BaseFilter]:
    """The text filters of a recipe exactly as a run would make them, by stage."""
    bare = settled.without("url").without("extract").without("language").without("minhash").without("pii")
    if settled.words == "blingfire":
        words.use()
    with tempfile.TemporaryDirectory() as folder:
        made = [step for step in stages.jobs(bare, stages.Inputs(folder), folder, 1, "")[0].steps
                if isinstance(step, BaseFilter)]
    return dict(zip(("gopher_repetition", "gopher_quality", "c4", "fineweb"), made, strict=True))


def quality(config: ConfigDict, root: pathlib.Path, found: Findings) -> None:
    """What each filter keeps of texts that people called good, less what it keeps of the others."""
    with lzma.open(root / FILES["quality"], "rt", encoding="utf-8") as file:
        texts = [json.loads(line) for line in file if line.strip()]
    good = np.array([row["label"] == 1 for row in texts])
    table = [["filter", "kept of the good", "kept of the bad", "difference [95%, Newcombe]"]]
    for name in config.planted.recipes:
        # Each alone, then one after the other: C4's rules cut lines before FineWeb's see the text.
        filters = filters_of(RECIPES[name]())
        kept = {stage: np.array([one.filter(Document(row["text"], "")) is True for row in texts])
                for stage, one in filters.items()}
        chain = []
        for row in texts:
            doc = Document(row["text"], "")
            chain.append(all(one.filter(doc) is True for one in filters.values()))
        for stage, keep in (kept | {"all four": np.array(chain)}).items():
            a, b, c, d = (int(x) for x in (keep[good].sum(), good.sum(), keep[~good].sum(), (~good).sum()))
            table.append([f"{stage}, {name}", share(a, b), share(c, d), spread(difference(a, b, c, d))])
            found.numbers.setdefault("quality", {}).setdefault(name, {})[stage] = (a, b, c, d)
    found.tables.append(Table("Quality filters against human labels", table,
                              f"{len(texts)} web texts, {good.sum()} called good by two of three people. A filter that "
                              "agrees with them keeps more of the good: the difference is above zero."))


def crawl(config: ConfigDict, root: pathlib.Path, workdir: pathlib.Path, found: Findings) -> None:
    """The real WARCs from end to end, by each recipe; what a run refuses is told."""
    source = workdir / "crawl"
    source.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / FILES["crawl"], "r:xz") as archive:
        member = next(m for m in archive if m.name.endswith(".warc.gz"))
        (source / "whirlwind.warc.gz").write_bytes(archive.extractfile(member).read())
    (source / "dolma.warc.gz").write_bytes((root / FILES["crawl2"]).read_bytes())
    for name in config.planted.recipes:
        settled, said = RECIPES[name](), ""
        begun = time.perf_counter()
        try:
            folder = run.curate(settled, stages.Inputs(str(source)), workdir / name, run.Where(workers=config.workers),
                                cache=config.cache, progress=False)
        except ValueError as error:  # nothing came through
            folder, said = max((workdir / name).glob(f"{name}-*"), key=lambda path: path.stat().st_mtime), f" {error}."
        rows = funnel.read(folder, settled)
        kept = collections.Counter(urllib.parse.urlsplit(row).hostname for row in _addresses(folder))
        found.tables.append(Table(f"Real crawl, {name}", funnel_rows(rows),
                                  f"{rows.html_bytes / 1e6:.2f} MB of HTML, {time.perf_counter() - begun:.1f} s.{said} "
                                  f"Kept: {', '.join(map(str, kept)) or 'nothing'}."))
        found.pictures.append((f"Real crawl, {name}", funnel_picture(rows)))
        found.numbers.setdefault("crawl", {})[name] = [
            {"stage": s.name, "documents": s.documents, "dropped": s.dropped, "reasons": s.reasons,
             "interval": wilson(s.documents, s.documents + s.dropped)} for s in rows.stages]


def _addresses(folder: pathlib.Path) -> list[str]:
    return [row["metadata"].get("url", "") for row in documents(folder / "documents", 1000)]
