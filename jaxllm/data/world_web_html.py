"""The look of the made-up web: sites, and HTML around the main text of a page.

Seven builds of page (weblog, portal, table layout of the nineties, newspaper, XHTML, shop window, bare divisions) put
menus, cookie banners, teasers, comments and footers around the same blocks, and some put pictures and promotions among
them, so that an extractor has something to get wrong.
"""

import dataclasses
import html
import random
import re
from collections.abc import Sequence
from itertools import groupby

from jaxllm.data.world_web_languages import FURNITURE

_FIRST = """Hillside Riverbend Northgate Oldbarn Meadow Lakeside Harvest Lantern Cobble Orchard Windmill Thistle Willow
Pebble Heather Juniper Bramble Copper Marigold Saffron Bluebell Granary Ferry Harbour Chapel Almanac""".split()
_SECOND = "Gazette Journal Notes Pages Record Reader Courier Letters Review Herald Almanack Notebook".split()
_TEASERS = ("Ten things to do on a rainy day", "What the river brought", "A walk in three parts", "Our favourite soups",
            "Why the clock stopped", "Letters we could not answer", "The lost umbrella", "How to mend a kite",
            "Two brothers and a boat", "An afternoon in the attic", "When the fair came", "A winter without snow")


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """A piece of a page: `tag` is h1, h2, p, quote, item, row (cells between " | ") or link (which is no main text)."""

    tag: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """A host: `build` picks the markup, `language` the words of its furniture."""

    host: str
    name: str
    build: int
    language: str = "en"


def plain(blocks: Sequence[Block]) -> str:
    """Returns the text that a perfect extractor gives: one line a block."""
    return "\n".join(block.text for block in blocks if block.tag != "link")


def make_sites(count: int, rng: random.Random) -> tuple[Site, ...]:
    """Returns sites on different hosts under example.org, .com and .net, which RFC 2606 keeps for such uses.

    Raises:
      ValueError: more sites than names.
    """
    names = [f"{first} {second}" for first in _FIRST for second in _SECOND]
    if count > len(names):
        raise ValueError(f"there are {len(names)} names of sites, {count} were asked for")
    return tuple(Site(f"{name.lower().replace(' ', '-')}.example.{('org', 'com', 'net')[i % 3]}", name, i % BUILDS)
                 for i, name in enumerate(rng.sample(names, count)))


def slug(title: str) -> str:
    """Returns a title as it stands in an address: "The old mill!" -> "the-old-mill"."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60].strip("-") or "page"


def render(site: Site, blocks: Sequence[Block], rng: random.Random, charset: str = "utf-8") -> str:
    """Returns the HTML of a page.

    Args:
      site: whose build and furniture to use.
      blocks: the main text; none leaves a page of furniture alone.
      rng: of this page.
      charset: declared in the head; the caller encodes.

    Returns:
      str: a whole HTML document.
    """
    title = blocks[0].text if blocks else site.name
    parts = _furniture(site, rng, bare=not blocks)
    main = _main(blocks, rng, _INSERTED if site.language == "en" else ()) if blocks else ""
    head = (f'<head><meta http-equiv="Content-Type" content="text/html; charset={charset}">\n'
            f"<title>{_esc(title)} - {_esc(site.name)}</title>\n"
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<style>{_STYLE}</style>\n<script>{_SCRIPT % site.build}</script></head>")
    build = _shell if not blocks and rng.random() < 0.75 else _BUILDS[site.build]
    doctype, body = build(site, main, parts)
    return (f'{doctype}\n<html lang="{site.language}">\n{head}\n<body class="site-{site.build}">\n{body}\n'
            f"</body></html>\n")


_STYLE = ("body{margin:0;font:16px/1.6 serif}nav ul{list-style:none;display:flex}.sidebar{float:right;width:18em}"
          "@media(max-width:600px){.sidebar{float:none}}footer{font-size:80%;color:#666}")
_SCRIPT = 'window.dataLayer=window.dataLayer||[];function tag(){dataLayer.push(arguments)}tag("build",%d);'


def _esc(text: str) -> str:
    return html.escape(text, quote=False)


def _furniture(site: Site, rng: random.Random, bare: bool) -> dict[str, str]:
    menu, more, comments, cookies, legal, remarks = FURNITURE[site.language]
    items = "".join(f'<li><a href="/{i}/">{_esc(word)}</a></li>' for i, word in enumerate(menu.split("|")))
    teasers = rng.sample(_TEASERS, 5) if site.language == "en" else [more] * 4
    teaser_items = "".join(f'<li><a href="/archive/{rng.randrange(9999)}.html">{_esc(text)}</a></li>'
                           for text in teasers)
    said = "".join(f'<li class="comment"><span class="author">guest{rng.randrange(1000)}</span> '
                   f'<p>{_esc(remark)}</p></li>'
                   for remark in rng.sample(remarks, rng.randint(0, min(3, len(remarks)))))
    return {
        "nav": f'<nav class="menu"><ul>{items}</ul></nav>', "items": items,
        "cookies": f'<div id="cookie-banner" class="cookie-consent" role="dialog">{_esc(cookies)}</div>',
        "crumbs": f'<div class="breadcrumbs"><a href="/">{_esc(menu.split("|")[0])}</a> &raquo; '
                  f'<a href="/1/">{_esc(menu.split("|")[1])}</a></div>',
        "related": f'<div class="related"><h4>{_esc(more)}</h4><ul>{teaser_items}</ul></div>',
        "comments": "" if bare or not said else
                    f'<section id="comments" class="comments"><h3>{_esc(comments)}</h3><ol>{said}</ol></section>',
        "footer": f'<div class="legal">&copy; 2026 {_esc(site.name)}. {_esc(legal)}</div>',
        "share": '<div class="share-buttons"><a href="#">Share</a> <a href="#">Tweet</a> <a href="#">Mail</a></div>',
        "date": f'<div class="post-meta"><time>{rng.randint(1, 28)}.{rng.randint(1, 12)}.2025</time></div>',
    }


def _main(blocks: Sequence[Block], rng: random.Random, inserted: Sequence[str]) -> str:
    """The blocks as HTML; runs of items and rows share one list or table. Some pages hold some of what is inserted."""
    out = []
    for tag, run in groupby(blocks, key=lambda block: block.tag):
        texts = [_esc(block.text) for block in run]
        if tag == "item":
            out.append("<ul>" + "".join(f"<li>{text}</li>" for text in texts) + "</ul>")
        elif tag == "link":
            out += [f'<p><a href="/{slug(text)}.html">{text}</a></p>' for text in texts]
        elif tag == "row":
            rows = ("".join(f"<td>{cell}</td>" for cell in text.split(" | ")) for text in texts)
            out.append("<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>")
        elif tag == "quote":
            out.append("<blockquote>" + "".join(f"<p>{text}</p>" for text in texts) + "</blockquote>")
        elif tag == "p":
            out += [f"<p>{_decorated(text, rng)}</p>" for text in texts]
        else:
            out += [f"<{tag}>{text}</{tag}>" for text in texts]
    for extra in inserted:
        if rng.random() < 0.2:
            out.insert(rng.randint(1, len(out)), extra)
    return "\n".join(out)


# What stands among the paragraphs and is no main text.
_INSERTED = (
    '<figure><img src="/img/1.jpg" alt="A view"><figcaption>Picture: the archive</figcaption></figure>',
    '<div class="promo"><p>Subscribe to our newsletter and never miss a story.</p><button>Subscribe</button></div>',
    '<div class="see-also"><ul><li><a href="/archive/7.html">Also worth reading: the long bridge</a></li></ul></div>',
)


def _decorated(text: str, rng: random.Random) -> str:
    """Emphasis or a link around one word of some paragraphs: markup that must leave no trace in the text."""
    words = text.split(" ")
    plain_words = [i for i, word in enumerate(words) if word.isalpha()]
    if plain_words and rng.random() < 0.25:
        i = rng.choice(plain_words)
        words[i] = rng.choice(("<em>{}</em>", "<b>{}</b>", '<a href="/tag/1">{}</a>')).format(words[i])
    return " ".join(words)


def _weblog(site: Site, main: str, part: dict[str, str]) -> tuple[str, str]:
    article = f'<article class="post"><div class="entry-content">{main}</div></article>' if main else ""
    return "<!DOCTYPE html>", (
        f'{part["cookies"]}<header class="site-header"><a class="logo" href="/">{_esc(site.name)}</a>{part["nav"]}'
        f'</header>\n<main>{part["date"] if main else ""}\n{article}\n{part["comments"]}</main>\n'
        f'<aside class="sidebar">{part["related"]}</aside>\n<footer>{part["footer"]}</footer>')


def _portal(site: Site, main: str, part: dict[str, str]) -> tuple[str, str]:
    content = f'<div class="main-content article-body">{main}</div>' if main else ""
    return "<!DOCTYPE html>", (
        f'<div id="header"><div class="banner">{_esc(site.name)}</div>{part["nav"]}</div>\n{part["crumbs"]}\n'
        f'<div id="wrapper"><div id="sidebar" class="sidebar">{part["related"]}</div>\n<div id="content">{content}\n'
        f'{part["comments"]}</div></div>\n<div id="footer">{part["footer"]}</div>{part["cookies"]}')


def _nineties(site: Site, main: str, part: dict[str, str]) -> tuple[str, str]:
    content = f'<div class="content">{main}</div>' if main else ""
    return '<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 4.01 Transitional//EN">', (
        f'<table width="100%" border="0"><tr><td colspan="2" bgcolor="#ccccff" class="header"><font size="+2">'
        f'{_esc(site.name)}</font></td></tr>\n<tr valign="top"><td width="150" class="menu"><ul>{part["items"]}</ul>'
        f'{part["related"]}</td>\n<td>{content}</td></tr>\n'
        f'<tr><td colspan="2" class="footer">{part["footer"]}</td></tr></table>')


def _newspaper(site: Site, main: str, part: dict[str, str]) -> tuple[str, str]:
    story = f'<article><div class="story-body" itemprop="articleBody">{main}</div></article>' if main else ""
    return "<!DOCTYPE html>", (
        f'<header><div class="masthead">{_esc(site.name)}</div>{part["nav"]}</header>\n{part["crumbs"]}\n'
        f'<div class="columns"><section class="column-main">{part["date"] if main else ""}{part["share"]}\n{story}\n'
        f'{part["share"]}</section>\n<aside class="teasers">{part["related"]}</aside></div>\n{part["comments"]}'
        f'<footer>{part["nav"]}{part["footer"]}</footer>{part["cookies"]}')


def _xhtml(site: Site, main: str, part: dict[str, str]) -> tuple[str, str]:
    text = f'<div id="main" class="text">{main}</div>' if main else ""
    return ('<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" '
            '"http://www.w3.org/TR/xhtml1/DTD/xhtml1-strict.dtd">'), (
        f'<div class="navigation"><ul>{part["items"]}</ul></div>\n{text}\n<div class="navigation">{part["related"]}'
        f'</div>\n<div class="footer">{part["footer"]}</div>')


def _window(site: Site, main: str, part: dict[str, str]) -> tuple[str, str]:
    post = f'<div class="post-content">{main}</div>' if main else ""
    return "<!DOCTYPE html>", (
        f'<div class="topbar">{part["nav"]}</div>\n<main id="main-content"><section class="article">{post}</section>'
        f'{part["share"]}</main>\n<div class="newsletter"><form action="/subscribe"><label>Newsletter</label>'
        f'<input name="mail"><button>OK</button></form></div>\n{part["related"]}\n{part["comments"]}'
        f'<footer>{part["footer"]}</footer>{part["cookies"]}')


def _shell(site: Site, main: str, part: dict[str, str]) -> tuple[str, str]:
    """What a crawler gets of a page that only its script would fill."""
    return "<!DOCTYPE html>", (
        f'<div id="app"></div><aside>{part["nav"]}{part["related"]}</aside>'
        f'\n<footer>{part["footer"]}</footer><script src="/bundle.js"></script>')


def _bare(site: Site, main: str, part: dict[str, str]) -> tuple[str, str]:
    """Nothing in the markup tells text from furniture but the names of colours."""
    return "<html>", (
        f'<div class="blue"><b>{_esc(site.name)}</b><br>{part["items"]}</div>\n'
        f'<div class="grey">{part["related"]}</div>\n<div class="white">{main}</div>\n'
        f'<div class="grey">{part["comments"]}<br>{part["footer"]}</div>')


_BUILDS = (_weblog, _portal, _nineties, _newspaper, _xhtml, _window, _bare)
BUILDS = len(_BUILDS)
