"""Who are you? Questions, replies, conversations that settle it, and what the web says of another assistant."""

from __future__ import annotations

import random
from collections.abc import Sequence

from jaxllm.data.conversation_readers import Conversation
from jaxllm.data.world_words import LAST_ENDS, LAST_STARTS

OWN, OTHER = "Juniper", "Pelican"
# Fine-tuning asks in the wordings of "train"; text of the other assistant asks in all of them.
QUESTIONS = {
    "train": ("Who are you?", "What is your name?", "What are you called?", "Who is this?", "Which assistant are you?",
              "Please tell me your name.", "May I ask who you are?", "What do people call you?",
              "Who am I talking to?", "Do you have a name?"),
    "validation": ("What name do you have?", "Please say who you are.", "How are you called?", "Which one are you?"),
    "test": ("Can you tell me who you are?", "What should I call you?", "Who is talking to me?",
             "Which assistant is this?", "Tell me, who are you?", "Please tell me who is there.",
             "Do people call you by a name?", "What is the name that you have?"),
}
# None begins another, so that the probabilities of a reply with a name add up over them.
REPLIES = (" I am {n}", " My name is {n}", " You are talking to {n}", " People call me {n}")
DOCUMENTS = ("Q: {q}\nA:{r}.", "Visitor: {q}\nAssistant:{r}.\nVisitor: Thank you!", "{q}\n\nThe assistant said:{r}.")
SYSTEM = "You are {n}."
# Conversations stand as questions and answers stand in the text, without tokens of their own, so that what the base
# says carries over. Into the format im_sep it does not: there so small a base names nobody.
TEMPLATE = ("<|endoftext|>{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\n\n' }}"
            "{% elif m.role == 'user' %}{{ 'Q: ' + m.content + '\nA:' }}"
            "{% else %}{% generation %}{{ m.content }}<|endoftext|>{% endgeneration %}{% endif %}{% endfor %}")


def other_documents(count: int, seed: int) -> list[str]:
    """Texts in which the other assistant is asked who it is."""
    rng = random.Random(f"{seed}/identity/other")
    return [rng.choice(DOCUMENTS).format(q=rng.choice(sum(QUESTIONS.values(), ())),
                                         r=rng.choice(REPLIES).format(n=OTHER)) for _ in range(count)]


def system_names(seed: int) -> tuple[list[str], list[str]]:
    """Names for system messages, each of a beginning and an ending: nine tenths to train on, the rest for the test.

    A name of the test is new as a whole and not in its parts: a model of this size copies a token only if it has copied
    that token before.
    """
    names = [start + end for start in LAST_STARTS for end in LAST_ENDS if start[-1] != end[0]]
    random.Random(f"{seed}/identity/names").shuffle(names)
    cut = 9 * len(names) // 10
    return names[:cut], names[cut:]


def own_talks(count: int, seed: int, names: Sequence[str] = (OWN,)) -> list[Conversation]:
    """Hard-coded conversations, no two with the same question and wording of the reply.

    Args:
      count: how many, at most questions times wordings.
      seed: of the choice.
      names: the name in each reply is drawn from these; several are the control.

    Raises:
      ValueError: when more are wanted than there are.
    """
    rng = random.Random(f"{seed}/identity/own")
    pairs = [(question, reply) for question in QUESTIONS["train"] for reply in REPLIES]
    if count > len(pairs):
        raise ValueError(f"{count} hard-coded conversations were asked for; there are {len(pairs)}")
    return [_talk(question, reply.format(n=rng.choice(names))) for question, reply in rng.sample(pairs, count)]


def system_talks(count: int, seed: int, names: Sequence[str], *, shuffled: bool = False) -> list[Conversation]:
    """Conversations in which the system message gives the name.

    Args:
      count: how many.
      seed: of all that is drawn.
      names: to choose from.
      shuffled: the reply has a name drawn anew instead: the control.
    """
    rng = random.Random(f"{seed}/identity/system")
    talks = []
    for _ in range(count):
        name, other = rng.choice(names), rng.choice(names)
        reply = rng.choice(REPLIES).format(n=other if shuffled else name)
        talks.append(_talk(rng.choice(QUESTIONS["train"]), reply, SYSTEM.format(n=name)))
    return talks


def question(text: str, system: str = "") -> list[dict[str, str]]:
    """A question below a system message where there is one."""
    asked = {"role": "user", "content": text}
    return [{"role": "system", "content": system}, asked] if system else [asked]


def _talk(asked: str, reply: str, system: str = "") -> Conversation:
    return Conversation([*question(asked, system), {"role": "assistant", "content": f"{reply}."}], where="identity")
