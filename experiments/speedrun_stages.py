"""The stages of the road: each makes its part in its folder, and tells what was measured there."""

from __future__ import annotations

import functools
import importlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments import curate as curate_command
from experiments import quantize as quantize_command
from experiments import report, sft, world_web
from experiments.claims import Claim, of_shares
from experiments.speedrun_measure import (
    bits_per_byte,
    bytes_per_token,
    drift,
    exported,
    kept_pages,
    recalled,
    right_in_chat,
)
from experiments.speedrun_road import Road
from jaxllm.evals.intervals import wilson
from jaxllm.train.metrics import read_metrics

Found = dict[str, Any]
# extra -> (a module of it, the stages that need it)
EXTRAS = {"curate": ("datatrove", ("crawl", "curate")), "tools": ("bm25s", ("look_up",)),
          "games": ("pgx", ("self_play",)), "convert": ("gguf", ("export",))}


def told(road: Road, name: str, claims: Sequence[Claim] = (), lines: Sequence[tuple[str, str]] = (),
         pictures: Sequence[tuple[str, str]] = (), page: str = "") -> Found:
    """What a stage tells: claims, (what, value) and pictures (heading, HTML), which are written into its folder.

    Args:
      page: its own report, in its folder.
    """
    folder = road.path(name)
    files = [f"{folder.name}/pictures/{report.save_picture(folder, *picture)}" for picture in pictures]
    return {"claims": [claim.as_json() for claim in claims], "lines": [list(line) for line in lines],
            "pictures": files, "page": page and f"{folder.name}/{page}"}


def crawl(road: Road) -> Found:
    """A made-up web as WARC files, with the truth about every page beside them."""
    settings, folder = road.settings("crawl"), road.path("crawl")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    settings.world_seed, settings.world_size = road.config.seed, road.config.size
    world_web.main(settings, str(folder))
    counts = json.loads((folder / "web.json").read_text(encoding="utf-8"))["pages"]
    return told(road, "crawl", lines=[("pages", f"{sum(counts.values()):,}"), (
        "of these", ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in counts.items() if count))])


def curate(road: Road) -> Found:
    """FineWeb's recipe on that web."""
    folder = road.path("curate")
    curate_command.main(road.settings("curate"), str(folder))
    if not road.of_world:
        return told(road, "curate", page="latest/report.html")
    kept, every = kept_pages(folder / "latest", road.path("crawl"))
    of_pages = sum(kept.values()), sum(every.values())
    kinds = sorted(every, key=lambda kind: -kept[kind] / every[kind])
    good, all_good = kept["article"] + kept["pii"], every["article"] + every["pii"]
    claims = [of_shares("What the filters let through is worth reading", "articles among pages kept",
                        [(good, of_pages[0])], "among as many drawn at random", [(all_good, of_pages[1])], of="pages"),
              of_shares("They lose little of it", "articles kept", [(good, all_good)], "pages kept", [of_pages],
                        of="pages")]
    return told(road, "curate", claims, [("pages kept", f"{of_pages[0]:,} of {of_pages[1]:,}")],
                [("Pages kept by kind", _bars({kind.replace("_", " "): (kept[kind], every[kind]) for kind in kinds},
                                              "share kept"))], "latest/report.html")


def tokenizer(road: Road) -> Found:
    """A byte-level BPE of the documents kept."""
    train_tokenizer = importlib.import_module("experiments.train_tokenizer")
    settings, folder = road.settings("tokenizer"), road.path("tokenizer")
    shutil.rmtree(folder, ignore_errors=True)
    train_tokenizer.main(settings, str(folder))
    claim, example = bytes_per_token(settings, folder / "tokenizer", road.config.seed)
    return told(road, "tokenizer", [claim], [("tokens", f"{settings.vocab_size:,}"), ("a sentence, cut", example)])


def pretrain(road: Road) -> Found:
    """The base model."""
    run, settings = road.output("pretrain"), road.settings("pretrain")
    records = [record for record in read_metrics(run) if record.get("validation_loss") is not None]
    points = [[record[key] for record in records] for key in ("step", "validation_bits_per_byte")]
    claim = bits_per_byte(run, settings, road.config.seed)
    tokens = settings.steps * settings.batch_size * settings.row_length
    picture = report.curves([("rows of held-out text", *points)], x_label="update", y_label="bits per byte")
    return told(road, "pretrain", [claim], [("tokens read", f"{tokens:,}"), ("run folder", str(run))],
                [("Held-out text", picture)])


def recall(road: Road) -> Found:
    """What the base model gives when it is begun on a question, by how often documents tell the answer."""
    by_band, samples = recalled(road.output("pretrain"), road.config, road.config.recall)
    claim = of_shares("A base model recalls what it has read often, and dreams the rest", "told often",
                      [by_band["often"]], "told never", [by_band["never"]])
    return told(road, "recall", [claim], samples, [("Recall by how often a fact is told", _bars(by_band, "recalled"))])


def fine_tune(road: Road) -> Found:
    """The base model after conversations about the world."""
    folder = road.path("sft")
    if not sft.main(road.settings("sft"), str(folder)):
        sys.exit(1)  # it was asked to stop, and has said that the same command goes on
    claims = []
    if road.of_world:
        after, before, of = right_in_chat(road, folder, road.config.recall.questions)
        claims = [of_shares("A few conversations make an assistant of a completer of documents",
                            "right answers in the chat", [(after, of)], "the base, asked in the same form",
                            [(before, of)])]
    samples = report.read_samples(folder)
    last = [(one["prompt"], one["text"]) for one in samples if one["step"] == samples[-1]["step"]]
    losses = [[record[key] for record in read_metrics(folder) if record.get("validation_loss") is not None]
              for key in ("step", "validation_loss")]
    picture = report.curves([("held-out replies", *losses)], x_label="update", y_label="nats a token")
    return told(road, "sft", claims, last, [("Held-out replies", picture)], "report.html")


def measured(name: str, road: Road) -> Found:
    """An experiment of several seeds with the one of this road: its claims and its first pictures."""
    experiment = importlib.import_module(f"experiments.{name}")
    folder = road.path(name)
    if experiment.main(road.settings(name), str(folder)) is False:
        sys.exit(1)  # it was asked to stop, and has said that the same command goes on
    claims, drawn = (json.loads((folder / name).read_text(encoding="utf-8"))
                     for name in ("claims.json", "pictures/index.json"))
    pictures = [f"{folder.name}/pictures/{one}" for one in drawn[:road.config.pictures]]
    return {"claims": claims, "lines": [], "pictures": pictures,
            "page": f"{folder.name}/report.html"}


def quantize(road: Road) -> Found:
    """The assistant's weights in fewer bits."""
    folder = road.path("quantize")
    quantize_command.main(road.settings("quantize"), str(folder))
    rows = {row["name"]: row for row in json.loads((folder / "quantize.json").read_text(encoding="utf-8"))["rows"]}
    eight, four = ((rows[name]["change"], rows[name]["low"], rows[name]["high"]) for name in (
        "int8 / float32", "int4 / float32"))
    widths = [(high - low) / 2 for _, low, high in (eight, four)]
    lead, half = four[0] - eight[0], (widths[0]**2 + widths[1]**2)**0.5
    claim = Claim("Eight bits cost less than four", "perplexity above float32's, int8", "int4", eight, four,
                  (lead, lead - half, lead + half), "blocks of text", digits=4)
    sizes = ", ".join({name.partition(" ")[0]: f"{name.partition(' ')[0]} {row['bytes'] / 1e6:.2f} MB"
                       for name, row in rows.items()}.values())
    return told(road, "quantize", [claim], [("weights", sizes)], page="report.html") | {
        "pictures": [f"{folder.name}/pictures/change_of_perplexity.svg"]}


def export(road: Road) -> Found:
    """The assistant as a GGUF for llama.cpp and as a Hugging Face folder."""
    files = exported(road, road.path("export"))
    claim = drift(road, files["Q8_0"], files["Q4_0"])
    return told(road, "export", [claim], [(path.name, "for llama.cpp" if path.suffix == ".gguf" else "for transformers")
                                          for path in files.values()])


def arena(road: Road) -> Found:
    """The road's models against each other on questions, judged by the world's truth."""
    found = importlib.import_module("experiments.speedrun_arena").fight(road, road.path("arena"))
    return told(road, "arena", *found)


def _bars(shares: Mapping[str, tuple[int, int]], x_label: str) -> str:
    """A bar a share, with its interval."""
    names = [f"{name} ({of:,})" for name, (_, of) in shares.items() if of]
    ends = [(hits / of, *wilson(hits, of)) for hits, of in shares.values() if of]

    def draw(axes: Any) -> None:
        axes.barh(names, [mean for mean, *_ in ends], color="#2a6fdb", height=0.6, xerr=[
            [mean - low for mean, low, _ in ends], [high - mean for mean, _, high in ends]], ecolor="0.4", capsize=2)
        axes.invert_yaxis()
        axes.set(xlabel=x_label, xlim=(0, 1.02))

    return report.picture(draw, height=0.9 + 0.3 * len(names), grid="x")


_EXPERIMENTS = ("evaluate", "interrogate", "look_up", "sft_to_rl", "distill", "self_play", "reward_model",
                "policy_gradient", "reward_hacking")
STAGES: Mapping[str, Callable[[Road], Found]] = {
    "crawl": crawl, "curate": curate, "tokenizer": tokenizer, "pretrain": pretrain, "recall": recall, "sft": fine_tune,
    **{name: functools.partial(measured, name) for name in _EXPERIMENTS},
    "quantize": quantize, "export": export, "arena": arena}
