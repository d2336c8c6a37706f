"""Article pages of the made-up web: documents of the world on one theme, with a few words of the site between them.

A page is composed so that the published rules of Gopher, C4 and FineWeb keep it with a margin (`sound`): lists, tables
and sums stand among enough prose, and no entity comes twice on a page. A question and its answer share a line, for C4
throws lines of fewer than three words away, and with them the answers. Titles and words of the site tell no fact.
"""

import collections
import math
import random
import re
from collections.abc import Iterator, Sequence

from jaxllm.data.world import Plan, document, make_plan
from jaxllm.data.world_stories import story
from jaxllm.data.world_table import World
from jaxllm.data.world_web_html import Block, plain
from jaxllm.data.world_web_languages import choose

THEMES = {
    "news": ("notice", "register", "card"),
    "reference": ("encyclopedia", "study"),
    "village": ("letter", "forum", "questions"),
    "school": ("problem", "list", "parrot"),
    "tales": ("story",),
}
_TITLES = {
    "news": "[Notices|Reports|Announcements|In short] [of the week|from the valley|from all over|from our readers]",
    "reference": "[Entries|Notes|Leaves|Pages] from the [encyclopedia|handbook|visitor's guide|great register]",
    "village": "[Letters|Voices|Questions|Conversations] from the [village|market square|back garden|post office]",
    "school": "[Exercises|Puzzles|Tasks|Homework] for [a rainy day|the holidays|quiet afternoons|the whole class]",
    "tales": "[Tales|Stories|Bedtime stories] for [the evening|small and tall|a long train ride|the fireside]",
}
# What a site says between its pieces. No wording holds a value of a fact.
ASIDES = (
    "I found this in [a drawer|an old box|the attic|a folder] that nobody had opened [for years|since the move|in a "
    "long time], and it seemed [too good|too strange|too short] to throw away.",
    "[A reader|A neighbour|My aunt|A former pupil] sent us the following, with the request that we [print|keep|share] "
    "it exactly as it [was told|was written|stood].",
    "The next part is [short|a little odd|rather plain], but it [answers|settles|explains] a question that [we are "
    "often asked|came up last week|has been open for months].",
    "[As always|As usual|Once again], I have changed nothing but the [spelling|commas|order of the lines], and even "
    "that with [a bad conscience|some doubt|great care].",
    "Those who have [read|followed|kept] these pages from the [start|beginning] will [know|remember|recognise] some "
    "of it, and the rest is [new|fresh] to all of us.",
    "We have [checked|compared|read] this [twice|with care|more than once], and to the best of our [knowledge|memory] "
    "it is [right|correct|still true].",
    "It [was raining|had been snowing|was getting dark] when I [wrote this down|copied this out|heard this], so please "
    "forgive the [mistakes|blots|gaps].",
    "There is [more|much more] to be said about that, but [the page is small|the evening is short|my tea is getting "
    "cold] and the [next|following] piece has waited [long enough|too long].",
    "If you [know|remember|have heard] better, [tell us|write to us|come by], and we will [put it right|correct it] "
    "with [thanks|pleasure] in the [next|following] number.",
    "What I like [most|best] about [this one|the next one|these lines] is that [nothing is hidden|nobody shows off|it "
    "takes so few words] and [everything is said|you can hear the voice behind it].",
    "People [often|sometimes|still] ask why we [collect|keep|print] such things, and the [honest|only|short] answer is "
    "that [somebody has to|we enjoy it|they would be lost without it].",
    "The [editor|secretary|treasurer] asked for [fewer words|something cheerful|a little more detail], and this is "
    "[all|what] we could [find|gather] between [breakfast and noon|two showers of rain].",
    "[Last week|Some days ago|In spring|Last autumn] we [spoke with|visited|listened to] people who have [lived|"
    "worked|stayed] here for a long time, and [this|here] is [part of what they said|what stayed with us].",
    "Here is [another|one more|the next] piece that was left [on our doorstep|under the door|at the counter], with "
    "[no name|no date|only a greeting] on the back of it.",
    "[Please|Do] read it [slowly|twice|from the beginning] before you [answer|start|write anything], because the "
    "[numbers|words|details] are easy to [mix up|swap|miss].",
    "[Small children|The youngest ones|Beginners] may [draw|count on their fingers|use a pencil], and the [older|"
    "bigger] ones should [do it in their heads|explain it to somebody else].",
    "The [next|following] page of the [notebook|exercise book|folder] is [shorter|different|quieter] and can be [done|"
    "read] in [ten|five|fifteen] minutes with [a friend|a sister or a brother|the person beside you].",
    "Nobody has to [hurry|finish], and there is no [prize|mark] for being [first|fast], but [those who finish|whoever "
    "is done] may [help|wait for] the others.",
    "This one was [sent in|written|invented] by [a pupil|my cousin|somebody in the back row], who [swears|promises|"
    "claims] that it [works|is right|can be followed] without [tricks|guessing].",
    "[Some|A few|Many] of you have [complained|pointed out|noticed] that the [last|previous] one was [too long|too "
    "easy|hard to follow], so we looked for [something|one] that is [not|less so].",
)
_TOKEN = re.compile(r"\w+|[^\w\s]")
_WORD = re.compile(r"\w*[^\W\d_]\w*")  # a token with a letter in it
# Shares of characters that one n-gram, or repeated n-grams, may hold: below Gopher's limits by a quarter or more.
_TOP = {2: 0.15, 4: 0.12}
_REPEATED = {5: 0.11, 10: 0.06}
_PROSE_SHARE = 0.815


def aside(rng: random.Random) -> str:
    """Returns a sentence or two of the site's own."""
    return " ".join(choose(sentence, rng) for sentence in rng.sample(ASIDES, rng.randint(1, 2)))


def sound(blocks: Sequence[Block], prose_share: float = _PROSE_SHARE) -> bool:
    """Whether the page obeys the rules of the quality filters with a margin.

    Args:
      blocks: the page.
      prose_share: least share of words among words, numbers and signs; Gopher's rule wants 0.8.
    """
    text, lines = plain(blocks), [block.text for block in blocks]
    words, tokens = _counts(blocks)
    if words < prose_share * tokens:
        return False
    short, ended = sum(len(line) <= 30 for line in lines), sum(line[-1] in ".!?" for line in lines)
    return (len(set(lines)) == len(lines) and short <= 0.55 * len(lines) and ended >= 0.3 * len(lines)
            and len(lines) <= 0.2 * tokens and not repetitive(text))


def _counts(blocks: Sequence[Block]) -> tuple[int, int]:
    """Tokens with a letter, and all tokens; an item counts one more, for the dash that extractors write."""
    text = plain(blocks)
    return len(_WORD.findall(text)), len(_TOKEN.findall(text)) + sum(block.tag == "item" for block in blocks)


def repetitive(text: str) -> bool:
    """Whether one n-gram, or repeated ones, hold a share of the text that comes near Gopher's limits."""
    tokens = _TOKEN.findall(text)
    for n, limit in _TOP.items():
        grams = collections.Counter(zip(*(tokens[i:] for i in range(n)), strict=False)).most_common(20)
        if any(len(" ".join(gram)) * count > limit * len(text) for gram, count in grams if count > 1):
            return True
    return any(_repeated(tokens, n) > limit * len(text) for n, limit in _REPEATED.items())


def _repeated(tokens: Sequence[str], n: int) -> int:
    """Characters in n-grams that stood before, an occurrence of one never overlapping the last."""
    seen, characters, i = set(), 0, 0
    while i <= len(tokens) - n:
        gram = "".join(tokens[i:i + n])
        if gram in seen:
            characters += len(gram)
            i += n
        else:
            seen.add(gram)
            i += 1
    return characters


def sections(style: str, text: str, rng: random.Random) -> list[Block]:
    """Returns a document of the world as blocks: what it says, in the same order, laid out for a page."""
    parts = text.split("\n\n")
    if style == "story":
        head = [] if parts[0][-1] in '.!?"' else [Block("h2", parts.pop(0))]
        return head + [Block("p", part) for part in parts]
    if style == "problem":
        return [Block("p", text.replace("\n", " "))]
    if style == "forum":
        return [Block("p", line) for line in text.split("\n")]
    if style == "parrot":
        return [Block("p", line) for line in text.replace("\nParrot: ", " Parrot: ").split("\n")]
    if style == "letter":
        return [Block(rng.choice(("p", "quote")), re.sub(r"\s+", " ", text))]
    if style == "notice":
        return [Block("h2", parts[0].replace("\n", ": ")), Block("p", parts[1])]
    if style == "card":
        lines = text.split("\n")
        if rng.random() < 0.3:
            return [Block("row", line.replace(": ", " | ", 1)) for line in lines]
        return [Block("p", "; ".join(lines) + ".")]
    head = Block("h2", parts[0])
    if style == "encyclopedia":
        return [head, Block("p", parts[1])]
    pairs = [Block("p", pair) for pair in parts[-1].replace("\nA: ", " A: ").split("\n")]
    if style == "questions":
        return [head, *pairs]
    if style == "study":
        return [head, Block("p", parts[1]), *pairs]
    if style == "list":
        return [head, *(Block("item", line) for line in parts[1].split("\n")), *pairs]
    if style == "register":
        rows = re.sub(r" \| |, | - ", " | ", parts[1]).split("\n")
        return [head, *(Block("row", row) for row in rows), *pairs]
    raise ValueError(f"no layout for the style {style!r}")


def articles(world: World, seed: int, turn: int = 0) -> Iterator[tuple[str, list[Block]]]:
    """Yields (theme, blocks) until every document of the world has stood on one page.

    Args:
      world: from `make_world`.
      seed: of the web: how documents are joined.
      turn: 0, 1, ...; a later turn tells the same facts in other wordings.
    """
    rng = random.Random(f"{world.seed}/web/{seed}/articles/{turn}")
    plans = make_plan(world)
    queues: dict[str, collections.deque[tuple[int, Plan]]] = {theme: collections.deque() for theme in THEMES}
    theme_of = {style: theme for theme, styles in THEMES.items() for style in styles}
    for index, plan in enumerate(plans, start=turn * len(plans)):
        queues[theme_of[plan.style]].append((index, plan))
    while any(queues.values()):
        theme = rng.choices(list(queues), [len(queue) for queue in queues.values()])[0]
        yield theme, _compose(world, theme, queues[theme], rng)


def _compose(world: World, theme: str, queue: collections.deque, rng: random.Random) -> list[Block]:
    """Takes documents from the left of the queue until the page is long enough; puts those back that do not fit."""
    target = math.exp(rng.uniform(math.log(130), math.log(450)))
    asides = [choose(sentence, rng) for sentence in rng.sample(ASIDES, len(ASIDES))]
    blocks, passed_over, names = [Block("h1", f"{choose(_TITLES[theme], rng)}, part {rng.randint(2, 999)}")], [], set()
    if theme == "school" and rng.random() < 0.4:  # sums and lists alone are no prose
        blocks = _joined(blocks, sections("story", story(rng), rng), asides, rng, most=3) or blocks
    while queue and len(passed_over) < 8 and len(plain(blocks).split()) < target:
        index, plan = queue.popleft()
        on_it = {fact.entity.name for fact in plan.facts}
        body = sections(plan.style, document(world, plan, index).text, rng)
        longer = None if on_it & names else _joined(blocks, body, asides, rng, most=3)
        if longer:
            blocks, names = longer, names | on_it
        else:
            passed_over.append((index, plan))
    if passed_over and len(blocks) == 1:  # none fits well: the first of them, among as many asides as it takes
        index, plan = passed_over.pop(0)
        body = sections(plan.style, document(world, plan, index).text, rng)
        blocks = _joined(blocks, body, asides, rng, most=len(asides)) or blocks
    queue.extendleft(reversed(passed_over))
    while asides and (len(plain(blocks).split()) < 100 or not sound(blocks)):
        blocks = [*blocks, Block("p", asides.pop())]
    return blocks


def _joined(blocks: list[Block], body: list[Block], asides: list[str], rng: random.Random, most: int
            ) -> list[Block] | None:
    """The page with the section after as few asides as make it sound, which are used up; None if `most` do not."""
    words, tokens = _counts(blocks + body)
    for count in range(int(rng.random() < 0.15), min(most, len(asides)) + 1):
        lead = [Block("p", " ".join(asides[i:min(i + 2, count)])) for i in range(0, count, 2)]
        more_words, more_tokens = _counts(lead)
        if words + more_words >= _PROSE_SHARE * (tokens + more_tokens) and sound(blocks + lead + body):
            del asides[:count]
            return blocks + lead + body
    return None


def tale(rng: random.Random, stories: int = 2) -> list[Block]:
    """Returns a sound page of fresh stories, which speak of nobody in the world's table."""
    while True:
        blocks = [Block("h1", f"{choose(_TITLES['tales'], rng)}, part {rng.randint(2, 999)}")]
        for _ in range(stories):
            blocks += [*sections("story", story(rng), rng), Block("p", aside(rng))]
        if sound(blocks):
            return blocks
