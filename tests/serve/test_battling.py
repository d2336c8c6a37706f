"""The page of blind battles: what its calls save, what they do not tell, and the page itself in a browser."""

import contextlib
import json
import threading
import time

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")
httpx = pytest.importorskip("httpx", reason="needs the package httpx")
uvicorn = pytest.importorskip("uvicorn", reason="needs the extra `serve`")

from jaxllm.evals.arena_play import battles_of  # noqa: E402
from jaxllm.evals.arena_votes import read_votes, tally  # noqa: E402
from jaxllm.serve.battle_store import BattleStore  # noqa: E402
from jaxllm.serve.battling import create_app  # noqa: E402

PROMPTS = [[{"role": "user", "content": f"the {word}"}] for word in ("old cat", "mat", "rat")]
ATTACK = '<img src=x onerror="window.broken=1">'
REPLIES = {name: [[f"{text} {i} {ATTACK}"] for i in range(3)] for name, text in (("sft", "good"), ("rl", "bad"))}
BATTLES = battles_of(PROMPTS, REPLIES)


@contextlib.contextmanager
def showing(file, battles=BATTLES, overlap=0.0):
    """The address of a server, and its store."""
    store = BattleStore(battles, file, overlap)
    config = uvicorn.Config(create_app(store), port=0, log_config=None)
    listening = config.bind_socket()
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", store
    finally:
        server.should_exit = True
        thread.join()


def ask(client, path, **body):
    answer = client.post(f"/battles{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_votes_are_blind_and_kept(tmp_path):
    file = tmp_path / "votes.jsonl"
    with showing(file) as (address, store), httpx.Client(base_url=address) as client:
        seen = []
        for number in range(3):
            shown = ask(client, "/next", annotator="Ada", holding=[])
            assert ask(client, "/next", annotator="Ada") == shown  # a page that was loaded again
            assert set(shown) == {"battle", "prompt", "left", "right", "judged", "battles"}
            assert "sft" not in json.dumps(shown) and (shown["judged"], shown["battles"]) == (number, 3)
            better = "left" if shown["left"].startswith("good") else "right"
            assert ask(client, "/vote", annotator="Ada", battle=shown["battle"], verdict=better, seconds=1.5) == {
                "judged": number + 1}
            seen.append(shown["battle"])
        assert "battle" not in ask(client, "/next", annotator="Ada")
        votes = read_votes(file)
        assert [vote.players[vote.ranking.ranking[0][0]] for vote in votes] == ["sft"] * 3
        points = {tuple(vote.ranking.completions[i] for i in vote.shown) for vote in votes}
        assert len(points) == 3 and tally(votes).names == ()
        # Judged again: one line, the last. Taken back: none.
        ask(client, "/vote", annotator="Ada", battle=seen[0], verdict="bad")
        assert len(read_votes(file)) == 3 and read_votes(file)[-1].bad
        again = ask(client, "/undo", annotator="Ada", battle=seen[0])
        assert again["battle"] == seen[0] and len(read_votes(file)) == 2
    with open(file, "a") as torn:
        torn.write('{"prompt": [')
    with showing(file) as (address, store), httpx.Client(base_url=address) as client:
        assert ask(client, "/next", annotator="Ada")["battle"] == seen[0] and store.counts() == {"Ada": 2}
        ask(client, "/skip", annotator="Ada", battle=seen[0])
        assert "battle" not in ask(client, "/next", annotator="Ada")
        assert ask(client, "/undo", annotator="Ada", battle=seen[0])["battle"] == seen[0]


def test_sides_are_drawn_for_each_person_and_people_overlap(tmp_path):
    prompts = [[{"role": "user", "content": str(i)}] for i in range(60)]
    battles = battles_of(prompts, {name: [[f"{name} {i}"] for i in range(60)] for name in "ab"})
    store = BattleStore(battles, tmp_path / "votes.jsonl", overlap=0.5)
    for _ in range(20):
        store.vote(store.next("Ada").name, "Ada", "left")
    for _ in range(20):
        store.vote(store.next("Bo").name, "Bo", "left")
    votes = store.votes()
    assert 8 <= sum(vote.shown == (0, 1) for vote in votes) <= 32
    by_person = [{vote.ranking.completions for vote in votes if vote.ranking.annotator == name}
                 for name in ("Ada", "Bo")]
    assert len(by_person[0] & by_person[1]) == 10
    lefts = {name: [store.left(battle, name) for battle in battles] for name in ("Ada", "Bo")}
    assert lefts["Ada"] != lefts["Bo"] and 15 < sum(lefts["Ada"]) < 45
    assert tally(votes, ("position",)).names == ("position",)


@pytest.mark.parametrize("path, body, status, message", [
    ("/vote", {"battle": "0" * 12, "verdict": "left"}, 404, "there is no battle"),
    ("/undo", {"battle": BATTLES[0].name}, 404, "there is no battle"),
    ("/skip", {"battle": "../../etc"}, 400, "should match pattern"),
    ("/vote", {"battle": BATTLES[0].name, "verdict": "mine"}, 400, "verdict"),
    ("/next", {"annotator": " "}, 400, "annotator"),
])
def test_bad_calls_are_refused(tmp_path, path, body, status, message):
    with showing(tmp_path / "votes.jsonl") as (address, _), httpx.Client(base_url=address) as client:
        answer = client.post(f"/battles{path}", json={"annotator": "Ada", **body})
        assert answer.status_code == status and message in answer.json()["error"]["message"]
        form = client.post("/battles/skip", content="{}", headers={"content-type": "text/plain"})
        assert form.status_code == 400 and "application/json" in form.text
        assert client.get("/", headers={"host": "evil.example"}).status_code == 400
        assert "default-src 'none'" in client.get("/").headers["content-security-policy"]
        assert client.get("/pages/../battling.py").status_code == 404


def test_the_page_by_keys_and_by_taps(browser, tmp_path):
    file = tmp_path / "votes.jsonl"
    with showing(file) as (address, store):
        page, errors = browser.new_page(viewport={"width": 1200, "height": 800}), []
        page.set_default_timeout(8000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.goto(address)
        page.fill("#name", " Ada ")
        page.press("#name", "Enter")
        page.wait_for_selector("#count:text-is('0 of 3 judged')")
        good = "ArrowLeft" if page.inner_text("#left").startswith("good") else "ArrowRight"
        assert ATTACK in page.inner_text("#left") and not page.evaluate("window.broken")
        page.keyboard.press(good)
        page.wait_for_selector("#count:text-is('1 of 3 judged')")
        page.wait_for_selector("#status:text-is('Saved.')")
        (vote,) = read_votes(file)
        assert vote.players[vote.ranking.ranking[0][0]] == "sft" and vote.ranking.annotator == "Ada"
        page.keyboard.press("ArrowDown")
        page.wait_for_selector("#count:text-is('2 of 3 judged')")
        assert read_votes(file)[1].bad
        page.keyboard.press("u")
        page.wait_for_selector("#status:text-is('Taken back.')")
        assert len(read_votes(file)) == 1
        page.reload()
        page.wait_for_selector("#count:text-is('1 of 3 judged')")  # the name is kept in the browser
        page.route("**/battles/next", lambda route: route.abort())  # of the one after the next, for a while
        # What is under way is done in this person's name, so nobody else can begin.
        assert page.evaluate("() => { document.querySelector('[data-verdict=tie]').click(); "
                             "return document.getElementById('person').disabled }")
        page.wait_for_selector("#count:text-is('2 of 3 judged')")
        page.wait_for_selector("#person:enabled")
        page.unroute("**/battles/next")
        page.keyboard.press("s")
        page.wait_for_selector("#problem:text-is('The server cannot be reached.')")
        page.keyboard.press("s")
        page.wait_for_selector("#over", state="visible")
        page.keyboard.press("u")
        page.wait_for_selector("#task", state="visible")
        page.click("[data-verdict=right]")
        page.wait_for_selector("#over", state="visible")
        assert len(read_votes(file)) == 3 and store.counts() == {"Ada": 3}
        page.close()
        assert not [error for error in errors if "ERR_FAILED" not in error]
