"""TRL's side of the fine-tuning benchmark: SFTTrainer on tokens made before, timed in its own process."""

from __future__ import annotations

import json
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from experiments.benchmark_torch import set_up


class Watch(TrainerCallback):
    """Seconds from the beginning of the first epoch to the end of the last, the trainer's set-up left out."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.global_step:
            self.begun = time.perf_counter()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.begun


def train(folder: str, row_length: int, asked: dict[str, Any], threads: int
          ) -> tuple[Callable[[int], float], dict[str, Any]]:
    """run(count) reads all conversations `count` times; `asked` are fields of SFTConfig, and the batch size."""
    set_up(threads)
    datasets.disable_progress_bars()
    place = pathlib.Path(folder)
    talks = json.loads((place / "talks.json").read_text(encoding="utf-8"))
    fields = {name: value for name, value in asked.items() if name != "batch"}
    with tempfile.TemporaryDirectory() as scratch:
        args = SFTConfig(
            output_dir=scratch, per_device_train_batch_size=asked["batch"], max_length=row_length, learning_rate=2e-5,
            lr_scheduler_type="constant", num_train_epochs=1, bf16=False, use_cpu=not torch.cuda.is_available(),
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, **fields)
        watch = Watch()
        trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(place / "hugging_face", dtype=torch.float32), args,
            train_dataset=datasets.Dataset.from_list(talks), callbacks=[watch],
            processing_class=AutoTokenizer.from_pretrained(place / "hugging_face"))
    trainer.remove_callback(PrinterCallback)  # the answers of a worker go over standard output
    about = look(trainer)

    def run(count: int) -> float:
        trainer.args.num_train_epochs = count
        trainer.train()
        return watch.seconds

    run(1)
    return run, about


def look(trainer: SFTTrainer) -> dict[str, Any]:
    """Places, updates and the mean loss per counted token of a reading, by the weights as they are."""
    places, updates, total, counted = 0, 0, 0.0, 0
    trainer.model.eval()
    with torch.no_grad():
        for batch in trainer.get_train_dataloader():
            labels = batch.pop("labels")
            logits = trainer.model(**batch, use_cache=False).logits
            total += F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100,
                                     reduction="sum").item()
            counted += int((labels[:, 1:] != -100).sum())
            places, updates = places + batch["input_ids"].numel(), updates + 1
    trainer.model.train()
    return {"places": places, "updates": updates, "loss": total / max(counted, 1)}
