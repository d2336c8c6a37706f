"""Times both recipes beside datatrove's own example pipeline on the same WARC files; prints and writes a table.

    python -m experiments.curate_speed --config.folder=FOLDER_WITH_PAGES --workdir=runs/curate_speed
"""

from __future__ import annotations

import dataclasses
import datetime
import gzip
import io
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time

from ml_collections import ConfigDict

from experiments import launch, report

SIDES = ("datatrove", "fineweb", "fast")


def main(config: ConfigDict, workdir: str) -> None:
    """Writes speed.json and speed.md into the run folder.

    Raises:
      ValueError: no page to measure on, or rounds below 1.
    """
    if config.rounds < 1:
        raise ValueError("rounds must be at least 1")
    from loguru import logger

    from jaxllm.data.curate.steps import language_model, prepare_lists

    logger.remove()
    folder = pathlib.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    language_model("")
    lists = prepare_lists(config.cache)
    pages, size = write_warcs(config, folder / "warc")
    rows: dict[str, list[dict]] = {side: [] for side in SIDES}
    for i in range(config.rounds):
        for side in (*SIDES[i % 3:], *SIDES[:i % 3]):
            rows[side].append(measure(side, folder, lists, f"{i}"))
            print(f"{side}: {rows[side][-1]}", flush=True)
    doubled = {side: [measure(side, folder, lists, f"two-{i}", processes=2)["seconds"] for i in range(config.rounds)]
               for side in SIDES[1:]}
    text = table(rows, doubled, pages, size) + agreement(folder / "out")
    report.write_text(folder / "speed.json", json.dumps({"pages": pages, "bytes": size, "one": rows, "two": doubled},
                                                        indent=2))
    report.write_text(folder / "speed.md", text)
    print(text)


def write_warcs(config: ConfigDict, folder: pathlib.Path) -> tuple[int, int]:
    """Puts all pages into two WARC files; returns how many there are, and their bytes of HTML."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    from jaxllm.data import world, world_web
    from jaxllm.data.curate.pages import Pages
    from jaxllm.data.curate.recipe import Read

    if config.folder:
        documents = [document for document in Pages(config.folder, Read()).run(None)
                     if not document.metadata["is_text"]]
        found = [(document.metadata["url"], document.text.encode()) for document in documents]
    else:
        made = world_web.pages(world.make_world(0, "small"), seed=0, count=config.world_pages)
        found = [(page.url, page.html) for page in made]
    if not found:
        raise ValueError(f"{config.folder}: no page of HTML in it")
    folder.mkdir(exist_ok=True)
    for k in range(2):
        with open(folder / f"{k}.warc.gz", "wb") as file:
            writer = WARCWriter(file, gzip=True)
            for i, (url, content) in list(enumerate(found))[k::2]:
                http = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], "HTTP/1.1")
                writer.write_record(writer.create_warc_record(
                    url or f"http://site{i}.example.org/", "response", payload=io.BytesIO(content),
                    length=len(content), http_headers=http,
                    warc_headers_dict={"WARC-Identified-Payload-Type": "text/html"}))
    return len(found), sum(len(content) for _, content in found)


def measure(side: str, folder: pathlib.Path, lists: str, name: str, processes: int = 1) -> dict:
    """Seconds, peak memory and documents of one run in processes of their own, each with its half of the files."""
    out = folder / "out" / f"{side}-{name}"
    begun = time.perf_counter()
    children = [subprocess.Popen([sys.executable, "-m", "experiments.curate_speed", "--one", side, str(folder / "warc"),
                                  str(out), lists, str(rank), str(processes)], stdout=subprocess.PIPE, text=True)
                for rank in range(processes)]
    answers = [json.loads(child.communicate()[0].strip().splitlines()[-1]) for child in children]
    if any(child.returncode for child in children):
        raise RuntimeError(f"{side} failed: see its message above")
    return {"seconds": time.perf_counter() - begun, "memory_mb": max(a["memory_mb"] for a in answers),
            "documents": sum(a["documents"] for a in answers)}


def one(side: str, warcs: str, out: str, lists: str, rank: str, world_size: str) -> None:
    """The child: runs the pass over pages, prints what it took."""
    from loguru import logger

    steps = example(warcs, out) if side == "datatrove" else ours(side, warcs, out, lists)
    logger.remove()
    most = [0]
    threading.Thread(target=watch, args=(most,), daemon=True).start()
    data = None
    for step in steps:
        data = step(data, int(rank), int(world_size))
    documents = sum(1 for _ in data)
    print(json.dumps({"documents": documents, "memory_mb": most[0]}))


def watch(most: list[int]) -> None:
    """Keeps the largest sum of private memory of this process and its children, in MB (Linux)."""
    while os.path.exists("/proc/self/smaps_rollup"):
        total = 0
        for pid in (os.getpid(), *children()):
            try:
                with open(f"/proc/{pid}/smaps_rollup") as file:
                    total += sum(int(line.split()[1]) for line in file if line.startswith("Private_"))
            except OSError:
                continue
        most[0] = max(most[0], total // 1024)
        time.sleep(0.25)
    most[0] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def children() -> list[int]:
    """Processes whose parent is this one."""
    me = os.getpid()
    with open(f"/proc/{me}/task/{me}/children") as file:
        return [int(pid) for pid in file.read().split()]


def ours(side: str, warcs: str, out: str, lists: str) -> list:
    """The first pass of a recipe as `curate` runs it."""
    from jaxllm.data.curate import recipe
    from jaxllm.data.curate.stages import Inputs, jobs

    settings = {"fineweb": recipe.fineweb, "fast": recipe.fast}[side]()
    return jobs(dataclasses.replace(settings, name=side), Inputs(warcs), out, 1, lists)[0].steps


def example(warcs: str, out: str) -> list:
    """The first pass of datatrove's examples/fineweb.py, with the language model from a file and English asked for."""
    from datatrove.pipeline import extractors, filters, readers, writers

    from jaxllm.data.curate.steps import language_model

    def dropped(name: str):
        return writers.JsonlWriter(f"{out}/removed/{name}")

    language = filters.LanguageFilter("en", exclusion_writer=dropped("language"))
    language.model.MODEL_URL = language_model("")
    return [readers.WarcReader(warcs, glob_pattern="*.warc.gz", default_metadata={"dump": "measured"}),
            filters.URLFilter(exclusion_writer=dropped("url")), extractors.Trafilatura(favour_precision=True), language,
            filters.GopherRepetitionFilter(exclusion_writer=dropped("repetition")),
            filters.GopherQualityFilter(exclusion_writer=dropped("quality")),
            filters.C4QualityFilter(filter_no_terminal_punct=False, exclusion_writer=dropped("c4")),
            filters.FineWebQualityFilter(exclusion_writer=dropped("fineweb")), writers.JsonlWriter(f"{out}/output")]


def table(rows: dict[str, list[dict]], doubled: dict[str, list[float]], pages: int, size: int) -> str:
    """Medians; speed against datatrove's example."""
    middle = {side: statistics.median(row["seconds"] for row in found) for side, found in rows.items()}
    lines = [f"{datetime.date.today()}; {platform.machine()}, {os.cpu_count()} cores; {pages:,} pages, "
             f"{size / 1e6:.1f} MB of HTML; medians of {len(rows['fast'])} rounds, the start included", "",
             "| pipeline | pages/s | MB of HTML/s | against the example | MB of memory | kept | two processes |",
             "|---|---|---|---|---|---|---|"]
    for side, found in rows.items():
        seconds = middle[side]
        twice = f"{seconds / statistics.median(doubled[side]):.2f}x" if side in doubled else ""
        memory = statistics.median(row["memory_mb"] for row in found)
        lines.append(f"| {side if side != 'datatrove' else 'datatrove, examples/fineweb.py'} | {pages / seconds:.1f} | "
                     f"{size / 1e6 / seconds:.2f} | {middle['datatrove'] / seconds:.2f}x | {memory:,.0f} | "
                     f"{found[0]['documents']:,} | {twice} |")
    return "\n".join(lines) + "\n"


def agreement(out: pathlib.Path) -> str:
    """Which pages the sides keep, beside each other."""
    kept = {}
    for side in SIDES:
        folder = out / f"{side}-0" / ("output" if side == "datatrove" else "work/pages")
        kept[side] = {row["id"] for path in sorted(folder.glob("*.jsonl.gz"))
                      for row in map(json.loads, gzip.open(path, "rt"))}
    lines = ["", "| kept by | both | the first alone | the second alone | intersection over union |",
             "|---|---|---|---|---|"]
    for first, second in (("datatrove", "fineweb"), ("fineweb", "fast")):
        both, either = kept[first] & kept[second], kept[first] | kept[second]
        lines.append(f"| {first}, {second} | {len(both):,} | {len(kept[first] - both):,} | "
                     f"{len(kept[second] - both):,} | {len(both) / max(len(either), 1):.3f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    else:
        launch.run(main, default_config="configs/curate_speed.py")
