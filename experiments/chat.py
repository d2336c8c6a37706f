"""A conversation with a chat model in the terminal.

    python -m experiments.chat --config.model=models/smollm2
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import sys
from collections.abc import Generator, Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import launch, report
from experiments.sample import token_bytes
from jaxllm.data.chat import end_of_turn, parse_reply, render
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.infer.engine import Engine, Request
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.infer.text_stream import TextStream
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params
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
    for key in ("max_tokens", "capacity"):
        if config[key] < 1:
            raise ValueError(f"config.{key} is {config[key]}; it must be at least 1")
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
        self.tokenizer, self.config, self.settings = tokenizer, config, settings
        self.template = config.template or tokenizer.chat_template
        self.stops = end_of_turn(tokenizer, self.template)
        # One slot: what it holds of the conversation so far need not be run again.
        self.engine = Engine(params, model, slots=1, capacity=config.capacity,
                             execution=Execution(dtype=config.dtype),
                             valid_vocab=min(tokenizer.vocab_size, model.vocab_size))
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
            request = self.request()
        except ValueError as error:
            self.turns.pop()
            print(f"{error}\n")
            return
        text = ""
        with contextlib.closing(self.pieces(request)) as pieces, contextlib.suppress(KeyboardInterrupt):
            for piece in pieces:
                text += piece
                print(piece, end="", flush=True)
        print("\n", flush=True)
        self.turns.append(parse_reply(text, self.template))

    def request(self) -> Request:
        """What to ask of the engine; the same question, seed and try give the same reply."""
        prompt = render(self.messages, self.tokenizer, add_generation_prompt=True, template=self.template).ids
        room = self.engine.capacity - len(prompt)
        if room < 1:
            raise ValueError(f"the conversation has {len(prompt)} tokens and there is room for {self.engine.capacity}: "
                             f"/undo some of it, begin again with /new, or raise config.capacity")
        return Request(tuple(prompt), min(self.config.max_tokens, room), self.settings, seed=self.config.seed,
                       sample=self.tries, stop_tokens=self.stops)

    def pieces(self, request: Request) -> Generator[str, None, None]:
        """The text of the reply as it becomes certain; closed early, it ends the request."""
        number = self.engine.submit(request)
        text = TextStream(lambda ids: token_bytes(self.tokenizer, ids))
        try:
            while True:
                for event in self.engine.step():
                    if event.token is not None and event.token not in self.stops:
                        yield text.push(event.token)
                    if event.finish is not None:
                        yield text.finish()
                        return
        finally:
            self.engine.cancel(number)
            self.engine.step()

    def save(self, path: str) -> None:
        """Appends the conversation to a jsonl file, whole or not at all."""
        file = pathlib.Path(path)
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        line = json.dumps({"messages": self.messages}, ensure_ascii=False)
        report.write_text(file, f"{before}{line}\n")
        print(f"saved to {path}\n")


if __name__ == "__main__":
    launch.run(main, default_config="configs/chat.py")
