"""TRL's side of the policy-gradient benchmark: GRPOTrainer or RLOOTrainer, timed in its own process."""

from __future__ import annotations

import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import datasets
import torch
import trl
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback

from experiments.benchmark_torch import set_up


class Watch(TrainerCallback):
    """Seconds from the beginning of the first step to the end of the last, the trainer's set-up left out."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.global_step:
            self.begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.begun


def train(folder: str, algorithm: str, checkpointing: bool, prompts: int, samples: int, max_tokens: int, threads: int
          ) -> tuple[Callable[[int], float], dict[str, Any]]:
    """run(count) takes `count` steps, each on a rollout of its own; see `Worker`."""
    set_up(threads)
    datasets.disable_progress_bars()
    place = pathlib.Path(folder)
    asked = json.loads((place / "prompts.json").read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(place / "hugging_face", dtype=torch.float32)
    tokens = torch.tensor(json.loads((place / "tokens.json").read_text(encoding="utf-8")))
    with torch.no_grad():
        logp = torch.log_softmax(model(tokens).logits[:, :-1], -1).gather(-1, tokens[:, 1:, None]).mean().item()
    config, trainer_class = ((trl.GRPOConfig, trl.GRPOTrainer) if algorithm == "grpo" else
                             (trl.RLOOConfig, trl.RLOOTrainer))
    talks = [{"prompt": [{"role": "user", "content": text}]} for text in asked]
    with tempfile.TemporaryDirectory() as scratch:
        args = config(
            output_dir=scratch, per_device_train_batch_size=prompts * samples, num_generations=samples,
            max_completion_length=max_tokens, beta=0.1, temperature=1.0, learning_rate=1.5e-4, num_iterations=1,
            steps_per_generation=1, lr_scheduler_type="constant", max_steps=1, bf16=False,
            gradient_checkpointing=checkpointing, use_cpu=not torch.cuda.is_available(), report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True,
            **({"loss_type": "grpo"} if algorithm == "grpo" else {}))
        watch = Watch()
        trainer = trainer_class(
            model, reward_funcs=reward, args=args, callbacks=[watch],
            train_dataset=datasets.Dataset.from_list(talks),
            processing_class=AutoTokenizer.from_pretrained(place / "hugging_face"))
    trainer.remove_callback(PrinterCallback)  # the answers of a worker go over standard output

    def run(count: int) -> float:
        trainer.args.max_steps = count
        trainer.train()
        return watch.seconds

    run(2)
    return run, {"logp": logp, "tokens": statistics.fmean(DRAWN)}


DRAWN: list[int] = []  # tokens of each rollout so far


def reward(completions: list[Any], completion_ids: list[list[int]], **others: Any) -> list[float]:
    """The length of a text, which costs nothing."""
    DRAWN.append(sum(map(len, completion_ids)))
    return [len(completion[0]["content"]) / 100 for completion in completions]
