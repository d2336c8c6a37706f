"""What the made-up web holds besides articles: one maker for each kind of page that a stage of curation should drop.

Each maker returns blocks that pass the stages before its own and fail there: FineWeb's order is url, extract, language,
gopher_repetition, gopher_quality, c4, fineweb, minhash. Texts are assembled from wordings of this file and from fresh
stories, so that none tells a fact of the world.
"""

import ipaddress
import random
from collections.abc import Iterable

from jaxllm.data.world_web_articles import aside, repetitive, sound, tale
from jaxllm.data.world_web_html import Block
from jaxllm.data.world_web_languages import choose

_WARES = "umbrellas ladders sofas curtains pillows blankets bicycles suitcases mattresses radiators".split()
_STUFFING = (
    "Buy cheap {w} online in our shop of cheap {w} with the best price for {w}.",
    "Cheap {w} online are the best {w} and our {w} are the cheap {w} that you want.",
    "The best price for {w} is here, so buy cheap {w} online today.",
    "Do you want cheap {w} online? We have the best price for {w} and free delivery of {w}.",
    "Visit our shop of cheap {w} and buy the best {w} online.",
)
_SPOT = "[mill|harbour|station|school|church|north gate|lower field|post office|old wall|orchard|weir|crossing]"
_ROW = f"[Upper|Lower|Old|New|Inner|Outer] [bridge|well|meadow|lane|yard|slope] [by|near|behind|above] the {_SPOT}"
_SCRAP = (f"[A|The|One|Another|Some] [small|broken|yellow|heavy|forgotten|folded|warm|borrowed] "
          f"[lamp|button|bucket|letter|blanket|ticket|shoe|picture|spoon] [from|near|behind|with|under|of|for|above] "
          f"the {_SPOT}")
_REMARKS = (
    "[We|They|You|I] [saw|lost|found|sold|like|want] [a|the|one|that] [red|big|tall|wet|new|long] "
    "[lamp|shoe|coat|jar|chair|pot].",
    "[We|They|You|I] have [a|the|one] [red|big|tall|wet|new|long] [spoon|hat|box|bag|pen|cup].",
    "[A|The|One] [chair|coat|pot|hat|pen|tray] goes to [him|her|them|us].",
    "[He|She] came with [a|the|one] [red|big|tall|wet|new|long] [box|bag|jar|cup|tray].",
)
_OFFICE = (
    "The municipal administration regrets to announce that the [swimming|reading|waiting] facilities will remain "
    "unavailable throughout [September|October|February] because of unavoidable maintenance.",
    "Applications concerning [parking|membership|accommodation] should henceforth be submitted electronically, "
    "accompanied by the appropriate documentation and a [recent|certified] photograph of the applicant.",
    "The agricultural association has postponed the extraordinary [meeting|assembly] of its representatives, whose "
    "participation had been [expected|announced] with considerable anticipation.",
    "Information regarding alternative [transportation|arrangements] between neighbouring communities is displayed "
    "beside the entrance and distributed together with the [invitations|programmes].",
    "Unfortunately the photographs accompanying this announcement disappeared during the restoration of our archives, "
    "and replacements have not been [discovered|delivered] anywhere.",
    "Correspondence about the competition, including [complaints|suggestions] and congratulations, is collected by "
    "the committee and answered individually before [Christmas|Easter].",
)
_CODE = (
    "function add(a, b) {{ return a + b + {n}; }}", "if (total > {n}) {{ total = {n}; }}",
    ".menu {{ width: {n}px; float: left; }}", "for (i = 0; i < {n}; i++) {{ show(i); }}",
    '{{"name": "list", "size": {n}}}',
)
_LOREM = (
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore.",
    "Lorem ipsum dolor sit amet, ut enim ad minim veniam, quis nostrud exercitation ullamco laboris nisi.",
)
_CONTACT = {
    "email": ("If you have [anything to add|found a mistake|kept a picture], write to {v} and we will [answer|reply] "
              "[within a week|as soon as we can].", "Orders and [questions|complaints] go to {v}, please, and not to "
              "the [post office|school|town hall]."),
    "phone": ("You can [call|ring] {v} [after six in the evening|before noon|at any time], and somebody will [answer|"
              "pick up].", "Whoever has found the [blue|grey|green] umbrella is asked to [call|ring] {v}."),
    "ip": ("The last [message|entry] in the guest book came from {v} and was [deleted|moved] by mistake.",
           "Our [old|new] server, which answers at {v}, will be [switched off|moved] next week."),
    "private_ip": ("The machine in the [hall|office] is at {v}, and it can be reached from the [reading room|cellar] "
                   "only.",),
    "version": ("The [catalogue|calendar] of the library now runs version {v} of its program.",),
}


def spam(rng: random.Random) -> list[Block]:
    """Keyword stuffing, or a paragraph pasted again and again: repetition."""
    ware = rng.choice(_WARES)
    head = Block("h1", f"Cheap {ware} online")
    if rng.random() < 0.4:
        pasted = f"{aside(rng)} {aside(rng)}"
        return [head, *(Block("p", pasted) for _ in range(rng.randint(4, 7)))]
    return [head, *(Block("p", " ".join(rng.choice(_STUFFING).format(w=ware) for _ in range(rng.randint(4, 7))))
                    for _ in range(rng.randint(3, 6)))]


def symbols(rng: random.Random) -> list[Block]:
    """Hashtags in the middle of sentences, or lines that trail off: Gopher's symbol rules."""
    lines = [aside(rng) for _ in range(rng.randint(5, 8))]
    if rng.random() < 0.5:
        lines = [line.rstrip(".") + "..." for line in lines]
    else:
        lines = [" ".join("#" + word if rng.random() < 0.4 else word for word in line.split()) for line in lines]
    return [Block("h1", choose("[Thoughts|Moments|Mood] of the [day|week]", rng)),
            *(Block("p", line) for line in dict.fromkeys(lines))]


def numbers(rng: random.Random) -> list[Block]:
    """A table of measurements with hardly a sentence: too few words with letters."""
    rows = dict.fromkeys(choose(_ROW, rng) for _ in range(rng.randint(18, 32)))
    return [Block("h1", f"Measurements of the {choose('[week|month|season]', rng)}"), Block("p", aside(rng)),
            *(Block("row", " | ".join([row, *(f"{rng.uniform(0, 99):.1f}" for _ in range(rng.randint(5, 7)))]))
              for row in rows)]


def stub(rng: random.Random) -> list[Block]:
    """A page of fewer than fifty words."""
    return [Block("h1", choose("[Closed|Moved|Under repair|Back soon]", rng)), Block("p", _few_words(rng))]


def _few_words(rng: random.Random) -> str:
    """Two sentences of together fewer than fifty words and more than 250 characters.

    Where extractors find less than 250 they go a second way, which may find the same text twice: repetition.
    """
    return " ".join(choose(sentence, rng) for sentence in rng.sample(_OFFICE, 2))


def links(rng: random.Random) -> list[Block]:
    """A list of links under a sentence or two; the links are no main text."""
    return [Block("h1", choose("[Useful|Friendly|Other] [pages|links]", rng)), Block("p", _few_words(rng)),
            *(Block("link", choose(_SCRAP, rng)) for _ in range(rng.randint(15, 40)))]


def code(rng: random.Random) -> list[Block]:
    """Stories with a line or two of code between them: a curly bracket."""
    while True:
        pasted = [rng.choice(_CODE).format(n=rng.randint(2, 99)) for _ in range(rng.randint(1, 2))]
        blocks = _with(tale(rng), pasted, rng)
        if sound(blocks, 0.83):
            return blocks


def lorem(rng: random.Random) -> list[Block]:
    """Stories on a page whose author left the dummy text in."""
    return _with(tale(rng), [rng.choice(_LOREM)], rng)


def few_sentences(rng: random.Random) -> list[Block]:
    """Two endless sentences: C4 wants five."""
    while True:
        blocks = [Block("h1", choose("[One|A] [long|very long] [breath|thought] [again|today]", rng))]
        for _ in range(2):
            pieces = [aside(rng).rstrip(".").replace(". ", ", while ") for _ in range(rng.randint(2, 3))]
            blocks.append(Block("p", ", and ".join(piece[0].lower() + piece[1:] for piece in pieces) + "."))
        if sound(blocks):
            return blocks


def lines(rng: random.Random) -> list[Block]:
    """Many short lines, without full stops or with nothing but them: FineWeb's own rules."""
    patterns = (_SCRAP,) if rng.random() < 0.6 else _REMARKS
    found: dict[str, None] = {}
    while not found or repetitive("\n".join(found)):
        found = dict.fromkeys(choose(rng.choice(patterns), rng) for _ in range(rng.randint(25, 40)))
    return [Block("h1", choose("[Things|Odds and ends] from the [fair|attic|cellar]", rng)),
            *(Block("p", line) for line in found)]


def _with(blocks: list[Block], inserted: Iterable[str], rng: random.Random) -> list[Block]:
    for text in inserted:
        places = [i for i in range(2, len(blocks)) if blocks[i].tag not in ("item", "row")] + [len(blocks)]
        blocks.insert(rng.choice(places), Block("p", text))
    return blocks


def plant_pii(blocks: list[Block], rng: random.Random) -> tuple[list[Block], tuple, tuple]:
    """Returns the page with personal data in it, what was planted, and decoys that only look like it.

    Emails and telephone numbers are of ranges that belong to nobody (example.* hosts; 555-01xx, 7946 0xxx). Public
    addresses of the ranges for documentation do not count as public, so those are drawn from all global ones. Decoys
    are addresses of private networks and version numbers.
    """
    planted, decoys = [], []
    kinds = rng.sample(("email", "phone", "ip"), rng.randint(1, 3))
    for kind in [*kinds, *rng.sample(("private_ip", "version"), rng.randint(0, 1))]:
        value = _VALUES[kind](rng)
        (planted if kind in kinds else decoys).append((kind, value))
        sentence = choose(rng.choice(_CONTACT[kind]), rng).format(v=value)
        blocks = _with(list(blocks), [sentence], rng)
    return blocks, tuple(planted), tuple(decoys)


def _email(rng: random.Random) -> str:
    user = choose("[anna|ben|clara|post|info|office|m.keller|j_smith|the-reader|quiet.fox]", rng)
    return f"{user}{rng.randint(2, 99)}@{choose('[mail|post|letters|box]', rng)}.example.{rng.choice(('org', 'com'))}"


def _public_ip(rng: random.Random) -> str:
    while True:
        address = ipaddress.IPv4Address(rng.getrandbits(32))
        if address.is_global and not address.is_multicast:
            return str(address)


def _phone(rng: random.Random) -> str:
    return rng.choice((f"({rng.randint(201, 989)}) 555-01{rng.randint(0, 99):02}",
                       f"+44 20 7946 0{rng.randint(0, 999):03}", f"+1 {rng.randint(201, 989)}-555-01"
                       f"{rng.randint(0, 99):02}"))


_VALUES = {
    "email": _email, "phone": _phone, "ip": _public_ip,
    "private_ip": lambda rng: rng.choice((f"192.168.{rng.randint(0, 255)}.{rng.randint(1, 254)}",
                                          f"10.{rng.randint(0, 255)}.{rng.randint(0, 255)}.{rng.randint(1, 254)}")),
    "version": lambda rng: ".".join(str(rng.randint(1, 30)) for _ in range(4)),
}
MAKERS = {"spam": (spam, "gopher_repetition"), "symbols": (symbols, "gopher_quality"),
          "numbers": (numbers, "gopher_quality"), "stub": (stub, "gopher_quality"), "links": (links, "gopher_quality"),
          "code": (code, "c4"), "lorem": (lorem, "c4"), "few_sentences": (few_sentences, "c4"),
          "lines": (lines, "fineweb")}
