"""Is the curation right? Each stage against planted truth, against labels of others, and by the model it leads to.

    pip install -e '.[curate]'; export JAXLLM_LANGUAGE_MODEL=lid.176.ftz
    python -m experiments.filter_ladder --workdir=runs/filter_ladder
    python -m experiments.filter_ladder --config.sections="('planted',)" --workdir=runs/filter_ladder
"""

from __future__ import annotations

import importlib.util
import pathlib
import time

from ml_collections import ConfigDict

from experiments import launch
from experiments.findings import write

SECTIONS = ("planted", "real", "ablation")


def main(config: ConfigDict, workdir: str) -> None:
    """Runs the sections that the config names, and writes results.json, report.md and report.html of each.

    Raises:
      ValueError: a key is out of range, or the extra is not installed.
      FileNotFoundError: the language model or a labelled file is missing.
    """
    check(config)
    from experiments import filter_ladder_ablation, filter_ladder_planted, filter_ladder_real
    from jaxllm.data.curate import steps

    steps.language_model(config.language_model)
    parts = {"planted": filter_ladder_planted.section, "real": filter_ladder_real.section,
             "ablation": filter_ladder_ablation.section}
    for name in config.sections:
        begun = time.perf_counter()
        folder = pathlib.Path(workdir) / name
        folder.mkdir(parents=True, exist_ok=True)
        found = parts[name](config, folder)
        if found is not None:
            write(found, folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what would fail only after minutes of work."""
    missing = [name for name in ("datatrove", "warcio", "spacy", "cchardet") if not importlib.util.find_spec(name)]
    if missing:
        raise ValueError(f"{', '.join(missing)} not installed: pip install -e '.[curate]'")
    if unknown := set(config.sections) - set(SECTIONS):
        raise ValueError(f"config.sections names {', '.join(sorted(unknown))}; choose from {', '.join(SECTIONS)}")
    if unknown := set(config.planted.recipes) - {"fineweb", "fast"}:
        raise ValueError(f"config.planted.recipes names {', '.join(sorted(unknown))}; choose from fineweb, fast")
    for path, value, least in (("planted.seeds", len(config.planted.seeds), 1), ("bootstrap", config.bootstrap, 1),
                               ("ablation.seeds", len(config.ablation.seeds), 2), ("workers", config.workers, 1),
                               ("planted.pages", config.planted.pages, 1), ("ablation.pages", config.ablation.pages, 1),
                               ("ablation.steps", config.ablation.steps, 1)):
        if value < least:
            raise ValueError(f"config.{path}: {value}, which must be {least} or more"
                             + (": an interval over seeds needs two" if path == "ablation.seeds" else ""))


if __name__ == "__main__":
    launch.run(main, default_config="configs/filter_ladder.py")
