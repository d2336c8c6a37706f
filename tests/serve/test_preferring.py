"""The page that collects rankings: what its calls save, what survives, and the page itself in a browser."""

import concurrent.futures
import contextlib
import dataclasses
import json

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")
httpx = pytest.importorskip("httpx", reason="needs the package httpx")

from configs import serve as config_file  # noqa: E402
from experiments import serve as command  # noqa: E402
from jaxllm.data.preferences import read_rankings  # noqa: E402
from jaxllm.serve import preferring  # noqa: E402
from jaxllm.serve.preference_store import PreferenceStore  # noqa: E402

PROMPTS = [[{"role": "user", "content": f"the {word}"}] for word in ("old cat", "mat", "rat")]


@pytest.fixture(scope="module")
def server(serving):
    with serving() as running:
        yield running


@contextlib.contextmanager
def collecting(server, folder, prompts=PROMPTS, overlap=0.0):
    """A client of a server that collects into a folder."""
    store = PreferenceStore(folder, prompts, overlap, agreement_samples=20)
    server.served.preferring = preferring.Preferring(store, samples=3, max_tokens=8)
    try:
        with httpx.Client(base_url=f"{server.address}/preferences", timeout=30) as client:
            yield client
    finally:
        server.served.preferring = None


def ask(client, path, **body):
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_samples_are_drawn_ranked_and_saved(server, tmp_path):
    with collecting(server, tmp_path) as client:
        shown = ask(client, "/next", annotator="Ada")
        assert shown["prompt"] == PROMPTS[0] and len(set(shown["completions"])) == 3
        assert ask(client, "/next", annotator="Ada") == shown  # a page that was loaded again
        second = ask(client, "/next", annotator="Ada", holding=[shown["set"]])
        assert second["prompt"] == PROMPTS[1]
        assert ask(client, "/rank", annotator="Ada", set=shown["set"], ranking=[[2], [0, 1]],
                   seconds=2.5) == {"ranked": 1}
        (ranking,) = read_rankings(tmp_path / "rankings.jsonl")
        best = ranking.ranking[0][0]
        assert ranking.completions[best] == shown["completions"][2] and len(ranking.ranking[1]) == 2
        assert ranking.annotator == "Ada" and list(ranking.prompt) == PROMPTS[0]
        line = json.loads((tmp_path / "rankings.jsonl").read_text())
        assert (line["model"], line["seconds"], line["set"]) == ("nano", 2.5, shown["set"])
        # Ranked again, as by a click that was repeated: one line, the last.
        assert ask(client, "/rank", annotator="Ada", set=shown["set"], ranking=[[0], [1], [2]]) == {"ranked": 1}
        (ranking,) = read_rankings(tmp_path / "rankings.jsonl")
        assert [ranking.completions[i] for (i,) in ranking.ranking] == shown["completions"]
        own = ask(client, "/next", annotator="Ada", prompt="the rat ran")
        assert own["prompt"] == [{"role": "user", "content": "the rat ran"}]
        assert ask(client, "/next", annotator="Bo", holding=[])["prompt"] == PROMPTS[2]  # own prompts use up none


def test_skip_undo_and_a_server_that_starts_again(server, tmp_path):
    with collecting(server, tmp_path) as client:
        first = ask(client, "/next", annotator="Ada")
        ask(client, "/rank", annotator="Ada", set=first["set"], ranking=[[1], [0], [2]])
        assert ask(client, "/undo", annotator="Ada", set=first["set"]) == first
        assert (tmp_path / "rankings.jsonl").read_text() == ""
        ask(client, "/skip", annotator="Ada", set=first["set"])
        second = ask(client, "/next", annotator="Ada")
        assert second["set"] != first["set"]
        assert ask(client, "/undo", annotator="Ada", set=first["set"]) == first
        ask(client, "/rank", annotator="Ada", set=first["set"], ranking=[[0, 1, 2]])
        ask(client, "/next", annotator="Bo", prompt="the\u2028rat")  # ends a line for Unicode, and none of the file
    with open(tmp_path / "rankings.jsonl", "a") as file:
        file.write('{"prompt": [{"role"')  # as a crash in the middle of a line leaves it
    with collecting(server, tmp_path) as client:
        assert client.get(f"{server.address}/preferences").json()["annotators"] == {"Ada": 1}
        assert ask(client, "/next", annotator="Ada") == second  # what stood on the page is ranked there still
        assert ask(client, "/rank", annotator="Ada", set=second["set"], ranking=[[0], [2], [1]]) == {"ranked": 2}
        assert len(list(read_rankings(tmp_path / "rankings.jsonl"))) == 2


def test_people_overlap_and_their_agreement_is_shown(server, tmp_path):
    with collecting(server, tmp_path, overlap=0.5) as client:
        def one(annotator, turn):
            shown = ask(client, "/next", annotator=annotator)
            order = sorted(range(3), key=lambda i: shown["completions"][i], reverse=turn)
            ask(client, "/rank", annotator=annotator, set=shown["set"], ranking=[[i] for i in order])
            return shown

        ada = [one("Ada", False) for _ in range(4)]
        bo = [one("Bo", turn=n % 2 == 1) for n in range(4)]  # its second and fourth are its own
        common = {shown["set"] for shown in ada} & {shown["set"] for shown in bo}
        assert len(common) == 2
        by_name = {shown["set"]: shown["completions"] for shown in ada}
        assert all(sorted(by_name[shown["set"]]) == sorted(shown["completions"]) for shown in bo
                   if shown["set"] in common)
        state = client.get(f"{server.address}/preferences").json()
        assert state["annotators"] == {"Ada": 4, "Bo": 4}
        (pair,) = state["two"]
        assert (pair["annotators"], pair["sets"], pair["pairs"], pair["agreed"]) == (["Ada", "Bo"], 2, 6, 1.0)
        assert state["all"]["pairs"] == 6 and state["prompts"] == 3


def test_annotators_at_once_lose_nothing(tmp_path):
    store = PreferenceStore(tmp_path, PROMPTS)
    made = store.add(PROMPTS[0], ["a" * 5000, "b" * 5000], "Ada", True)

    def work(annotator):
        for i in range(10):
            own = store.add(PROMPTS[i % 3], [f"{annotator} {i}", "y" * 4000], annotator, True)
            store.rank(own.name, annotator, [[0], [1]])
            store.rank(made.name, annotator, [[i % 2], [1 - i % 2]])
            if i % 3 == 0:
                store.undo(own.name, annotator)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        list(pool.map(work, [f"person {i}" for i in range(6)]))
    found = list(read_rankings(store.file))
    assert len(found) == 6 * 7 and store.counts() == {f"person {i}": 7 for i in range(6)}
    again = PreferenceStore(tmp_path, PROMPTS)
    assert again.counts() == store.counts() and again.next_prompt() == store.next_prompt()


@pytest.mark.parametrize("path, body, status, message", [
    ("/rank", {"set": "0" * 12, "ranking": [[0], [1]]}, 404, "there is no set"),
    ("/undo", {"set": "0" * 12}, 404, "there is no set"),
    ("/skip", {"set": "../../etc"}, 400, "set: String should match pattern"),
    ("/next", {"annotator": " "}, 400, "annotator"),
    ("/next", {"annotator": "A\nda"}, 400, "annotator"),
    ("/next", {"colour": 1}, 400, "colour"),
    ("/rank", {"ranking": [[0], [1]]}, 400, "must hold each of 0 to 2 once"),
    ("/rank", {"ranking": [[0], [1, 3]]}, 400, "must hold each of 0 to 2 once"),
])
def test_bad_calls_are_refused(server, tmp_path, path, body, status, message):
    with collecting(server, tmp_path) as client:
        if path == "/rank" and "set" not in body:
            body = {"set": ask(client, "/next", annotator="Ada")["set"], **body}
        answer = client.post(path, json={"annotator": "Ada", **body})
        assert answer.status_code == status and message in answer.json()["error"]["message"]
        assert (tmp_path / "rankings.jsonl").read_text() == ""


def test_strangers_and_servers_that_collect_nothing(server, tmp_path, monkeypatch):
    with httpx.Client(base_url=server.address) as client:
        refused = client.get("/preferences")
        assert refused.status_code == 404 and "--config.prefer.collect=True" in refused.text
        assert client.get("/inspect/model").json()["ranks"] is False
        assert "default-src 'none'" in client.get("/prefer").headers["content-security-policy"]
    with collecting(server, tmp_path, prompts=()) as client:
        # Another site's page can send text without asking the browser, but not as JSON.
        form = client.post("/skip", content='{"annotator": "Ada"}', headers={"content-type": "text/plain"})
        assert form.status_code == 400 and "application/json" in form.text
        none = client.post("/next", json={"annotator": "Ada"})
        assert none.status_code == 409 and none.json()["error"]["code"] == "no_prompts"
        server.served.preferring = preferring.Preferring(server.served.preferring.store, samples=3, temperature=0.0)
        same = client.post("/next", json={"annotator": "Ada", "prompt": "the"})
        assert same.status_code == 409 and "one and the same answer" in same.text


def test_the_command_collects_as_its_config_says(model, tmp_path, monkeypatch):
    class Still:
        running = waiting = 0

        def __init__(self, *arguments, **settings):
            pass

        def warm_up(self):
            pass

        def step(self):
            return []

    monkeypatch.setattr(command, "load_model", lambda folder: model)
    monkeypatch.setattr(command, "Engine", Still)
    config = config_file.get_config("runs/nano")
    config.port, config.capacity = 0, 64
    server = command.build(config, str(tmp_path / "none"))
    assert server.served.preferring is None and not (tmp_path / "none").exists()
    server.served.worker.stop()
    (tmp_path / "p.txt").write_text("the cat\nthe rat")
    config.prefer.update(collect=True, prompts=str(tmp_path / "p.txt"), samples=5, temperature=0.5, max_tokens=100,
                         overlap=1.0)
    server = command.build(config, str(tmp_path / "run"))
    found = server.served.preferring
    server.served.worker.stop()
    assert (found.samples, found.temperature, found.max_tokens, found.store._overlap) == (5, 0.5, 64, 1.0)
    assert len(found.store.prompts) == 2 and found.store.file == tmp_path / "run" / "rankings.jsonl"
    monkeypatch.setattr(command, "load_model", lambda folder: (*model[:2], dataclasses.replace(model[2],
                                                                                               chat_template=None)))
    with pytest.raises(ValueError, match="has no chat template, and the samples to rank are replies"):
        command.build(config, str(tmp_path))
    for key, value, sentence in (("samples", 10, "choose 2 to 9"), ("overlap", 1.5, "it is a share"),
                                 ("temperature", 0.0, "both must be above 0"), ("prompts", "none.txt", "no such file")):
        config.prefer.update(samples=4, overlap=0.5, temperature=1.0, prompts="")
        config.prefer[key] = value
        with pytest.raises((ValueError, FileNotFoundError), match=sentence):
            command.main(config, str(tmp_path))


# In a browser


def labels(page):
    return page.locator(".answer").evaluate_all("nodes => nodes.map((node) => node.getAttribute('aria-label'))")


def test_the_page_by_keys_and_by_dragging(browser, server, tmp_path, monkeypatch):
    attack = '<img src=x onerror="window.broken=1">'

    async def drawn(served, settings, prompt):
        return [f"{attack} {name} {prompt[0]['content']}" for name in "one two three four".split()]

    monkeypatch.setattr(preferring, "_draw", drawn)
    context = browser.new_context(viewport={"width": 1100, "height": 900}, base_url=server.address)
    page, errors = context.new_page(), []
    page.set_default_timeout(8000)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    with collecting(server, tmp_path):
        page.goto("/")
        page.click("#to-prefer")
        page.fill("#name", " Ada ")
        page.press("#name", "Enter")
        page.wait_for_selector(".answer >> nth=3")
        page.keyboard.press("3")
        page.keyboard.press("1")
        page.keyboard.press("=")
        assert labels(page)[:3] == ["Answer 3, rank 1", "Answer 1, rank 1, tied", "Answer 2, not ranked yet"]
        page.keyboard.press("Enter")  # nothing is saved before all have a place
        page.keyboard.press("4")
        assert labels(page)[2:] == ["Answer 4, rank 2", "Answer 2, rank 3"]  # the last one's place is clear
        page.keyboard.press("Alt+ArrowUp")
        assert labels(page)[:3] == ["Answer 3, rank 1", "Answer 4, rank 1, tied", "Answer 1, rank 1, tied"]
        page.keyboard.press("=")
        texts = page.locator(".answer .text").all_inner_texts()
        page.keyboard.press("Enter")
        page.wait_for_selector("#status:text-is('Saved: 1 ranked.')")
        (ranking,) = read_rankings(tmp_path / "rankings.jsonl")
        tiers = [{ranking.completions[i] for i in tier} for tier in ranking.ranking]
        assert tiers == [{texts[0]}, {texts[1], texts[2]}, {texts[3]}] and ranking.annotator == "Ada"

        page.keyboard.press("u")
        page.wait_for_selector("#status:text-is('Taken back.')")
        assert page.locator(".answer .text").all_inner_texts() == texts
        assert [label.split(", ", 1)[1] for label in labels(page)] == ["rank 1", "rank 2", "rank 2, tied", "rank 3"]
        page.locator(".answer >> nth=3").drag_to(page.locator(".answer >> nth=0"), target_position={"x": 60, "y": 3})
        assert page.locator(".answer .text").all_inner_texts() == [texts[3], *texts[:3]]
        page.click("#save")
        page.wait_for_selector("#status:text-is('Saved: 1 ranked.')")
        assert next(read_rankings(tmp_path / "rankings.jsonl")).completions[
            next(read_rankings(tmp_path / "rankings.jsonl")).ranking[0][0]] == texts[3]
        page.keyboard.press("s")
        page.wait_for_selector("#request .text:text-is('the rat')")
        page.reload()
        page.wait_for_selector("#people:text-is('Ada 1')")  # the name is kept in the browser
        page.wait_for_selector(".answer >> nth=3")
        page.click("summary")
        page.fill("#own-prompt", "mine")
        page.click("#own button")
        page.wait_for_selector("#request .text:text-is('mine')")
        assert page.evaluate("document.documentElement.scrollWidth") <= 1100
        assert not errors and not page.evaluate("window.broken")
        context.close()


def test_the_page_on_a_phone_and_without_collecting(browser, server, tmp_path):
    phone = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark", has_touch=True,
                                is_mobile=True, base_url=server.address)
    page = phone.new_page()
    page.set_default_timeout(8000)
    page.goto("/prefer")
    page.wait_for_selector("#problem:has-text('collects no rankings')")
    with collecting(server, tmp_path):
        page.goto("/prefer")
        page.fill("#name", "Bo")
        page.tap("#who button")
        page.locator(".answer >> nth=2").tap()
        page.locator(".answer >> nth=1").tap()
        assert page.locator(".answer.placed").count() == 3
        page.locator(".answer >> nth=1").get_by_label("Tie with the one above").tap()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.tap("#save")
        page.wait_for_selector("#status:text-is('Saved: 1 ranked.')")
        assert [len(tier) for tier in next(read_rankings(tmp_path / "rankings.jsonl")).ranking] == [2, 1]
    phone.close()
