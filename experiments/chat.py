"""A conversation with a chat model in the terminal.

    python -m experiments.chat --config.model=models/smollm2
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import launch, report
from experiments.sample import token_bytes
from jaxllm.data.chat import end_of_turn, parse_reply, render
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.infer.generate import stream, stream_text
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params, unstack_blocks
from jaxllm.train.checkpoint import load_model

HELP = """/system TEXT   changes the system message; without a text, removes it
/retry         draws the last reply again
/undo          takes the last question and its reply back
/save FILE     appends the conversation to a jsonl file
/new           begins again
/quit          ends (so does the end of the input)
A line that begins with // is sent with one slash; Ctrl-C ends a reply."""


def main(config: ConfigDict, workdir: str) -> None:
    """Reads lines and answers them until /quit or the end of the input.

    Args:
      config: see configs/chat.py.
      workdir: not used; the model folder and the file to save to are named by the config.

    Raises:
      ValueError: for a setting out of range, or a model that has no chat template.
      FileNotFoundError: when there is no such model, or no folder to save to.
    """
    settings = SamplingSettings(**{key: config[key] for key in (
        "temperature", "top_k", "top_p", "min_p", "repetition_penalty")})
    if config.max_tokens < 1:
        raise ValueError(f"config.max_tokens is {config.max_tokens}; it must be at least 1")
    if config.save:
        check_folder(config.save)
    conversation = Conversation(*load_model(config.model), config, settings)
    if sys.stdin.isatty():
        print(f"{config.model}: write a line, or /help\n")
    for line in lines():
        if not conversation.take(line):
            break
    if config.save and conversation.messages:
        conversation.save(config.save)


def lines() -> Iterator[str]:
    """Lines from the terminal with a prompt and its history, or from whatever is piped in."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    import readline  # noqa: F401  input() edits lines by it
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


def check_folder(path: str) -> None:
    """Refuses a file whose folder is missing."""
    folder = pathlib.Path(path).absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; make it first")


class Conversation:
    """What has been said, and the model that answers.

    Args:
      params, model, tokenizer: as `load_model` gives them.
      config: see configs/chat.py.
      settings: how tokens are drawn.

    Raises:
      ValueError: for a tokenizer without chat template, or without the tokens of the format.
    """

    def __init__(self, params: Params, model: ModelConfig, tokenizer: Tokenizer, config: ConfigDict,
                 settings: SamplingSettings) -> None:
        self.params, self.model, self.tokenizer = unstack_blocks(params), model, tokenizer
        self.config, self.settings = config, settings
        self.template = config.template or tokenizer.chat_template
        self.stops = end_of_turn(tokenizer, self.template)
        self.system = config.system
        self.turns: list[dict[str, Any]] = []
        self.tries = 0

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation in OpenAI's shape; empty until something was said."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.turns] if self.turns else []

    def take(self, line: str) -> bool:
        """Does what a line says; returns False when it ends the conversation."""
        command, _, rest = line.strip().partition(" ")
        if not command.startswith("/") or command.startswith("//"):
            self.ask(line.removeprefix("/") if command.startswith("//") else line)
        elif command == "/quit":
            return False
        else:
            self.do(command, rest.strip())
        return True

    def do(self, command: str, rest: str) -> None:
        """A command that does not end the conversation; what cannot be done is said."""
        if command == "/system":
            self.system = rest
        elif command == "/new":
            self.turns, self.tries = [], 0
        elif command in ("/undo", "/retry") and not self.turns:
            print("nothing was said yet\n")
        elif command == "/undo":
            self.take_back()
        elif command == "/retry":
            question = self.take_back()
            self.tries += 1
            self.answer(question)
        elif command == "/save" and rest:
            try:
                check_folder(rest)
                self.save(rest)
            except OSError as error:
                print(f"{error}\n")
        else:
            print(f"{HELP}\n")

    def take_back(self) -> str:
        """Removes the last question and its reply; returns the question."""
        del self.turns[-1]
        return self.turns.pop()["content"]

    def ask(self, line: str) -> None:
        """Answers a new question."""
        if line.strip():
            self.tries = 0
            self.answer(line)

    def answer(self, question: str) -> None:
        """Prints the reply as it is drawn and keeps it; a conversation that is too long is said to be."""
        self.turns.append({"role": "user", "content": question})
        try:
            tokens = self.draw()
        except ValueError as error:
            self.turns.pop()
            print(f"{error}\n")
            return
        text = ""
        shown = (token for token in tokens if token not in self.stops)
        try:
            for piece in stream_text(shown, lambda ids: token_bytes(self.tokenizer, ids)):
                text += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            pass
        print("\n", flush=True)
        self.turns.append(parse_reply(text, self.template))

    def draw(self) -> Iterator[int]:
        """The tokens of the next reply; one of the same question, seed and try is the same."""
        prompt = render(self.messages, self.tokenizer, add_generation_prompt=True, template=self.template).ids
        room = self.model.max_positions - len(prompt)
        if room < 1:
            raise ValueError(f"the conversation has {len(prompt)} tokens and the model {self.model.max_positions} "
                             f"positions: /undo some of it, or begin again with /new")
        return stream(self.params, self.model, prompt, key=self.config.seed, sample_id=self.tries,
                      max_tokens=min(self.config.max_tokens, room), settings=self.settings, stop_tokens=self.stops,
                      valid_vocab=min(self.tokenizer.vocab_size, self.model.vocab_size),
                      execution=Execution(dtype=self.config.dtype))

    def save(self, path: str) -> None:
        """Appends the conversation to a jsonl file, whole or not at all."""
        file = pathlib.Path(path)
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        line = json.dumps({"messages": self.messages}, ensure_ascii=False)
        report.write_text(file, f"{before}{line}\n")
        print(f"saved to {path}\n")


if __name__ == "__main__":
    launch.run(main, default_config="configs/chat.py")
