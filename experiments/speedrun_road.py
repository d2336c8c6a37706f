"""A road of stages whose settings name each other: what each reads, where it writes, and what it depends on.

A string of a stage's settings may hold the name of another stage in braces, "{curate}/latest/documents": it stands for
the folder of that stage, and says that the one needs the other. "{seed}" and "{size}" are the road's.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from experiments import lab

# Of the talk.
ORDER = ("crawl", "curate", "tokenizer", "pretrain", "recall", "evaluate", "sft", "interrogate", "look_up", "sft_to_rl",
         "distill", "self_play", "reward_model", "policy_gradient", "reward_hacking", "quantize", "export", "arena")


@dataclasses.dataclass(frozen=True, eq=False)
class Road:
    """The run of one config, which must not change while the road is used.

    Attributes:
      config: of configs/speedrun.py.
      folder: of the run.
    """

    config: ConfigDict
    folder: pathlib.Path
    _keys: dict[str, str] = dataclasses.field(default_factory=dict, repr=False)

    def needs(self, name: str) -> list[str]:
        """The stages whose folders a stage's settings name, and those of `config.after`, in the order of the road."""
        named = {*self.config.after.get(name, ()), *re.findall(r"{(\w+)}", json.dumps(self._own(name), default=str))}
        return [other for other in ORDER if other in named]

    def key(self, name: str) -> str:
        """A hash of all that a stage depends on: its settings, and the keys of the stages that it needs."""
        if name not in self._keys:
            below = {other: self.key(other) for other in self.needs(name)}
            self._keys[name] = lab.key_of([self.config.seed, self.config.size, self._own(name), below])
        return self._keys[name]

    @property
    def of_world(self) -> bool:
        """Whether the web is the made-up one, whose truth is known."""
        return "crawl" in self.config.stages

    def path(self, name: str) -> pathlib.Path:
        """The folder of a stage."""
        return (self.folder / f"{name}-{self.key(name)}").absolute()

    def output(self, name: str) -> pathlib.Path:
        """What others read of a stage: its folder; of `pretrain` the run folder that the base models' cache holds."""
        return lab.base_model(self.settings(name), self.config.seed) if name == "pretrain" else self.path(name)

    def settings(self, name: str) -> ConfigDict:
        """A stage's settings with every name filled in, and the road's seed where it takes seeds."""
        known: dict[str, Any] = {"seed": self.config.seed, "size": self.config.size}

        def fill(text: str) -> str:
            for word in set(re.findall(r"{(\w+)}", text)):
                if word in ORDER and word not in known:
                    known[word] = self.output(word)
            return re.sub(r"{(\w+)}", lambda match: str(known.get(match[1], match[0])), text)

        settings = ConfigDict(_walk(self._own(name), fill))
        if "seeds" in settings:
            settings.seeds = (self.config.seed,)
        if "seed" in settings:
            settings.seed = self.config.seed
        return settings

    def _own(self, name: str) -> dict[str, Any]:
        return copy.deepcopy(self.config[name].to_dict()) if name in self.config else {}


def _walk(tree: Any, change: Callable[[str], str]) -> Any:
    """The same tree with every string changed."""
    if isinstance(tree, dict):
        return {key: _walk(value, change) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_walk(value, change) for value in tree)
    return change(tree) if isinstance(tree, str) else tree
