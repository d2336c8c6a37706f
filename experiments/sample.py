"""Continues prompts with a trained model, to the terminal and to jsonl.

    python -m experiments.sample --config.model=runs/pretrain_tiny --config.prompt="One day"
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
from ml_collections import ConfigDict

from experiments import launch, report
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.infer.generate import generate, stream, stream_text
from jaxllm.infer.prompts import check_prompts
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.model.config import Execution
from jaxllm.model.params import unstack_blocks
from jaxllm.train.checkpoint import load_model

SEPARATOR = "---"


def main(config: ConfigDict, workdir: str) -> None:
    """Prints every prompt with its samples; writes `config.output` where one is named.

    Args:
      config: see configs/sample.py.
      workdir: not used; the model folder and the output are named by the config.

    Raises:
      ValueError: for a setting out of range, a bad prompts file or a prompt too long for the model.
      FileNotFoundError: when there is no such model or prompts file.
    """
    settings = SamplingSettings(**{key: config[key] for key in (
        "temperature", "top_k", "top_p", "min_p", "repetition_penalty")})
    check(config)
    prompts = read_prompts(config.prompts_file) if config.prompts_file else [config.prompt]
    params, model, tokenizer = load_model(config.model)
    arguments = dict(
        key=config.seed, max_tokens=config.max_tokens, settings=settings,
        stop_tokens=stop_tokens(config.stop, tokenizer), execution=Execution(dtype=config.dtype),
        valid_vocab=min(tokenizer.vocab_size, model.vocab_size))
    ids = [[tokenizer.begin_of_text, *tokenizer.encode(prompt)] for prompt in prompts]
    check_prompts(ids, model, config.max_tokens)
    params = unstack_blocks(params)
    if config.stream:
        print_stream(params, model, tokenizer, prompts, ids, config.samples, arguments)
        return
    result = generate(params, model, ids, samples_per_prompt=config.samples, batch=config.batch,
                      **arguments)
    records = to_records(result, tokenizer, prompts, config.samples, arguments["stop_tokens"])
    for record in records:
        print(heading(record["prompt"], record["sample"]) + record["text"], flush=True)
    if config.output:
        report.write_text(pathlib.Path(config.output),
                          "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def check(config: ConfigDict) -> None:
    """Refuses what would fail only after the model was loaded or the samples were made."""
    for key in ("samples", "max_tokens", "batch"):
        if config[key] < 1:
            raise ValueError(f"config.{key} is {config[key]}; it must be at least 1")
    if config.output and config.stream:
        raise ValueError("config.output needs config.stream=False: log-probabilities come from the "
                         "batched loop")
    if config.output and not pathlib.Path(config.output).absolute().parent.is_dir():
        raise FileNotFoundError(f"config.output: there is no folder "
                                f"{pathlib.Path(config.output).absolute().parent}; make it first")


def read_prompts(path: str) -> list[str]:
    """The prompts of a file: .jsonl with a field "prompt", or text with lines `---` between them.

    The line break before a separator, and at the end of the file, belongs to the file, not to the
    prompt.

    Raises:
      ValueError: for bytes that are not UTF-8, a line that is not such json, or no prompt at all.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); "
                         f"convert it") from error
    if path.endswith(".jsonl"):
        prompts = [read_line(line, f"{path}:{number}")
                   for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    else:
        parts: list[list[str]] = [[]]
        for line in text.removesuffix("\n").split("\n"):
            if line.rstrip() == SEPARATOR:
                parts.append([])
            else:
                parts[-1].append(line)
        prompts = [prompt for prompt in map("\n".join, parts) if prompt.strip()]
    if not prompts:
        raise ValueError(f"{path} holds no prompt")
    return prompts


def read_line(line: str, where: str) -> str:
    """The prompt of one jsonl line."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not json: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise ValueError(f'{where} must be an object with a text under "prompt"')
    return record["prompt"]


def stop_tokens(spellings: tuple[str, ...], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of the special tokens that end a continuation."""
    unknown = [spelling for spelling in spellings if spelling not in tokenizer.special_tokens]
    if unknown:
        raise ValueError(f"config.stop: {unknown[0]!r} is no special token here; the tokenizer "
                         f"has {', '.join(tokenizer.special_tokens)}")
    return tuple(tokenizer.special_tokens[spelling] for spelling in spellings)


def heading(prompt: str, sample: int) -> str:
    return f"\n=== sample {sample} ===\n{prompt}"


def print_stream(params, model, tokenizer: Tokenizer, prompts: list[str], ids: list[list[int]],
                 samples: int, arguments: dict) -> None:
    """Prints each continuation as it comes; a character only when it is whole."""
    for row, (prompt, prompt_ids) in enumerate(zip(prompts, ids, strict=True)):
        for sample in range(samples):
            tokens = stream(params, model, prompt_ids, row_id=row, sample_id=sample, **arguments)
            print(heading(prompt, sample), end="", flush=True)
            shown = (token for token in tokens if token not in arguments["stop_tokens"])
            for piece in stream_text(shown, lambda ids: token_bytes(tokenizer, ids)):
                print(piece, end="", flush=True)
            print(flush=True)


def token_bytes(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    """The bytes of some ids; U+FFFD for an id that the encoding leaves without a token."""
    try:
        return tokenizer.decode_bytes(ids)
    except ValueError:
        return tokenizer.decode(ids).encode("utf-8")


def to_records(result, tokenizer: Tokenizer, prompts: list[str], samples: int,
               stops: tuple[int, ...]) -> list[dict]:
    """One json object per continuation; `logp` is nats per token, under the model itself."""
    records = []
    for i, row in enumerate(result.rows()):
        text = tokenizer.decode([token for token in row if token not in stops])
        records.append({"prompt": prompts[i // samples], "sample": i % samples, "text": text,
                        "tokens": row, "logp": np.asarray(result.logp[i, :len(row)]).tolist(),
                        "stopped": bool(result.stopped[i])})
    return records


if __name__ == "__main__":
    launch.run(main, default_config="configs/sample.py")
