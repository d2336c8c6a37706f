"""Expected curves: the band of a small config, and how soon it shows a bug.

    python -m experiments.expected_curves --workdir=runs/expected_curves

A band of five seeds says for every logged step what losses, norms and counts should be. Bugs of the field are put into
runs of the same config, one at a time, and the first step at which the run leaves the band is noted. Control: runs
without a bug whose seeds are not in the band, on which every alarm is a false one.
"""

from __future__ import annotations

import copy
import pathlib
import sys
import time
from typing import Any

from ml_collections import ConfigDict

from experiments import expected_curves_band as bands
from experiments import findings, lab, launch
from experiments.expected_curves_bugs import BUGS, none
from experiments.expected_curves_report import CLEAN, findings_of
from experiments.sweep_plan import module_of
from jaxllm.train.metrics import read_metrics


def main(config: ConfigDict, workdir: str) -> None:
    """Makes the band where asked, runs seeds with and without bugs, and writes what was found.

    Raises:
      ValueError: a key is out of range, or the band is of other settings.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    path = pathlib.Path(config.band)
    if config.make_band:
        runs = [_records(config, folder, CLEAN, seed) for seed in config.band_seeds]
        bands.write(bands.make(config.run, runs), path)
        print(f"the band of {len(runs)} seeds is in {path}", flush=True)
    band = bands.read(path)
    if band["settings"] != bands.settings(config.run):
        raise ValueError(f"{path} is the band of other settings; make it anew with --config.make_band=True")
    runs = {name: [_records(config, folder, name, seed) for seed in seeds] for name, seeds in (
        (CLEAN, config.clean_seeds), *((bug, config.bug_seeds) for bug in config.bugs))}
    if any(runs.values()):
        findings.write(findings_of(config, band, runs), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what would fail only after the first runs."""
    module = module_of(config.experiment)
    if hasattr(module, "check"):
        module.check(config.run)
    if unknown := set(config.bugs) - set(BUGS):
        raise ValueError(f"config.bugs: {', '.join(sorted(unknown))}: choose from {', '.join(BUGS)}")
    if shared := set(config.band_seeds) & {*config.clean_seeds, *config.bug_seeds}:
        raise ValueError(f"seeds {sorted(shared)} are of the band; judge others by it, or false alarms are not seen")
    if len(set(config.band_seeds)) < 3 or config.sigmas <= 0:
        raise ValueError("config.band_seeds needs three seeds or more, and config.sigmas must be above 0")
    if "dropped_microbatch" in config.bugs and config.run.get("microbatches", 1) < 2:
        raise ValueError("config.run.microbatches must be at least 2 for dropped_microbatch; or leave that bug out")


def _records(config: ConfigDict, folder: pathlib.Path, bug: str, seed: int) -> list[dict[str, Any]]:
    """The metrics of a run with a bug, made now or found."""
    run = ConfigDict(copy.deepcopy(config.run.to_dict()))
    run.seed = seed

    def make(place: pathlib.Path) -> None:
        with BUGS.get(bug, none)():
            if not module_of(config.experiment).main(run, str(place)):
                sys.exit(1)  # it was asked to stop, and has said that the same command goes on

    name = f"{bug.replace(' ', '_')}-{seed}"
    return read_metrics(lab.stage(folder / "runs", name, {"bug": bug, "run": run.to_dict()}, make))


if __name__ == "__main__":
    launch.run(main, default_config="configs/expected_curves.py")
