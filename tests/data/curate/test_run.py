"""A whole curation: what comes out, resumed after a kill, on one task or several, on Ray and for Slurm."""

import dataclasses
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("datatrove", reason="needs the extra `curate`")

from jaxllm.data.curate import funnel, recipe, run  # noqa: E402
from jaxllm.data.curate.stages import Inputs  # noqa: E402

# datatrove forks a process for its queues; JAX, which other tests have started here, warns of any fork.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")

# The fast recipe without its two stages that need a model or 4 million hosts; what differs is the same.
BASE = recipe.Recipe("test", words="blingfire", extract=recipe.Extract(extractor="resiliparse"),
                     language=recipe.Language(on=False), url=recipe.Url(integrated_lists=False),
                     minhash=recipe.MinHash(hash="xxhash"))
WORDS = """
kettle harbour orchard violin lantern bridge garden library mountain market river window letter doctor
winter summer teacher carpet engine forest blanket village soldier captain painter kitchen morning evening island
station hammer mirror basket candle ladder pocket ribbon saddle tunnel velvet walnut anchor barrel castle dragon falcon
""".split()
FRAMES = ("The {} of the {} was older than any {} that people had seen near the {}.",
          "When the {} came, nobody thought to bring a {} with the {} to this {}.",
          "Her {} and the {} stood by a {}, as they have since the {} burned.",
          "It took a {} to carry that {} from the {} back to our {}.",
          "Without a {} there would be no {}, said the {} who owned the {}.",
          "Some say that the {} hides a {} under its {}, far behind the {}.")


def prose(i):
    """Text that every filter keeps, different for each i."""
    draw = random.Random(i)
    return [draw.choice(FRAMES).format(*draw.sample(WORDS, 4)) for _ in range(12)]


def page(paragraphs):
    return ("<html><body><nav><a href='/a'>Home</a> <a href='/b'>About</a></nav><main><article>"
            + "".join(f"<p>{p}</p>" for p in paragraphs) + "</article></main></body></html>")


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    """Four files: 24 good pages, one of them twice, a short one, one with a curly bracket, one with an address."""
    folder = tmp_path_factory.mktemp("crawl")
    rows = [{"id": f"good-{i}", "html": page(prose(i)), "url": f"http://site{i % 3}.org/{i}"} for i in range(24)]
    rows[5]["html"] = page(prose(5) + ["Write to ann.lee@mail.example.net for more about the town and the market."])
    rows += [{"id": "twin", "html": page(prose(7)), "url": "http://site9.org/7"},
             {"id": "short", "html": page(prose(50)[:3]), "url": "http://site1.org/s"},
             {"id": "code", "html": page([*prose(99), "function f() { return 1; } is what it says, and more."]),
              "url": "http://site1.org/c"},
             {"id": "empty", "html": "<html><body></body></html>", "url": "http://site1.org/e"}]
    return written(rows, 4, folder)


def written(rows, files, folder):
    for k in range(files):
        with gzip.open(folder / f"{k}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows[k::files])
    return folder


def curate(crawl, folder, made=BASE, where=None, **options):
    """One worker works in this process; more are processes of their own, which take seconds to start at every stage."""
    return run.curate(made, Inputs(str(crawl)), folder, where or run.Where(workers=1, tasks=4), progress=False,
                      **options)


def documents(folder):
    rows = []
    for path in sorted(folder.rglob("*.jsonl.gz")):
        with gzip.open(path, "rt") as file:
            rows += map(json.loads, file)
    return {row["id"]: row for row in rows}


@pytest.fixture(scope="module")
def finished(crawl, tmp_path_factory):
    return curate(crawl, tmp_path_factory.mktemp("runs"))


def test_what_comes_out(finished):
    kept = documents(finished / "documents")
    assert len(kept) == 24 and ("good-7" in kept) != ("twin" in kept)
    assert "ann.lee" not in kept["good-5"]["text"] and "About" not in kept["good-0"]["text"]
    reasons = {row["id"]: row["metadata"]["filter_reason"] for stage in ("extract", "gopher_quality", "c4")
               for row in documents(finished / "dropped" / stage).values()}
    assert reasons == {"empty": "empty", "short": "gopher_short_doc", "code": "curly_bracket"}
    assert set(documents(finished / "dropped" / "minhash")) | set(kept) >= {"good-7", "twin"}
    assert not (finished / "work" / "documents").exists()


def test_funnel_adds_up(finished):
    rows = funnel.read(finished, BASE)
    assert dataclasses.asdict(rows)["stages"][0]["documents"] == 28
    names = [stage.name for stage in rows.stages]
    assert names == [name for name in recipe.STAGES if name != "language"]
    for before, stage in zip(rows.stages, rows.stages[1:], strict=False):
        assert stage.documents + stage.dropped == before.documents
    by_name = {stage.name: stage for stage in rows.stages}
    assert by_name["extract"].reasons == {"empty": 1} and by_name["minhash"].dropped == 1
    assert by_name["minhash"].notes == {"clusters": 1, "in_clusters": 2} and by_name["pii"].notes == {"emails": 1}
    assert by_name["pii"].characters == sum(len(row["text"]) for row in documents(finished / "documents").values())
    assert json.loads((finished / "funnel.json").read_text())["stages"][2]["name"] == "extract"


def test_documents_are_a_source_of_the_data_path(finished):
    from jaxllm.data.sources import open_source

    assert len(list(open_source(str(finished / "documents")))) == 24


def test_number_of_tasks_changes_no_text(crawl, finished, tmp_path):
    made = dataclasses.replace(BASE.without("minhash"))
    one = curate(crawl, tmp_path, made, run.Where(workers=1, tasks=1), tokenizer="")
    texts = {id_: row["text"] for id_, row in documents(one / "documents").items()}
    assert {id_: row["text"] for id_, row in documents(finished / "documents").items()}.items() <= texts.items()
    assert len(texts) == 25


@pytest.mark.slow
def test_other_settings_are_another_run_and_the_same_are_this_one(crawl, finished):
    """The other run has two workers: its texts are those of one, and what the settings let through."""
    assert curate(crawl, finished.parent) == finished
    other = dataclasses.replace(BASE, c4=dataclasses.replace(BASE.c4, curly_bracket=False)).without("minhash")
    changed = curate(crawl, finished.parent, other, run.Where(workers=2, tasks=4))
    assert changed != finished
    ours, theirs = documents(finished / "documents"), documents(changed / "documents")
    assert theirs.keys() == ours.keys() | {"good-7", "twin", "code"}
    assert all(theirs[id_]["text"] == row["text"] for id_, row in ours.items())


@pytest.mark.slow
def test_killed_and_called_again_loses_and_doubles_nothing(crawl, finished, tmp_path):
    script = ("import sys; sys.path.insert(0, sys.argv[1])\nimport test_run\n"
              "from jaxllm.data.curate import run\n"
              "if __name__ == '__main__':\n"
              "    test_run.curate(sys.argv[2], sys.argv[3], where=run.Where(workers=1, tasks=4))")
    (tmp_path / "go.py").write_text(script)
    command = [sys.executable, str(tmp_path / "go.py"), os.path.dirname(__file__), str(crawl), str(tmp_path / "runs")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    for _ in range(1200):
        if list((tmp_path / "runs").glob("*/logs/pages/completions/*")):
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "runs").glob("*/documents"))
    again = curate(crawl, tmp_path / "runs")
    assert documents(again / "documents").keys() == documents(finished / "documents").keys()
    assert funnel.read(again, BASE).stages[0].documents == 28


def test_gates(tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    written([{"id": f"{i}", "html": page(prose(i)), "url": ""} for i in range(2)], 1, few)
    none = dataclasses.replace(BASE, gopher_quality=recipe.GopherQuality(min_words=5000))
    with pytest.raises(ValueError, match="no page came through gopher_quality; 2 were dropped .gopher_short_doc"):
        curate(few, tmp_path / "a", none)
    assert not list((tmp_path / "a").glob("*/documents"))
    late = dataclasses.replace(BASE, extract=recipe.Extract(extractor="trafilatura", seconds=1e-4))
    for _ in range(2):  # it tries anew each time
        with pytest.raises(ValueError, match="no page came through extract; 2 were dropped .timeout"):
            curate(few, tmp_path / "b", late)
        assert not list((tmp_path / "b").glob("*/logs/pages"))


def test_too_many_pages_out_of_time_fail_the_run():
    def extract(late):
        return funnel.Funnel((funnel.Stage("extract", 1000 - late, 1, None, late, {"timeout": late}, 1.0, {}),), 1, 1)

    run.check(BASE, extract(5))
    with pytest.raises(ValueError, match="6 of 1,000 pages ran into extract.seconds=10.0"):
        run.check(BASE, extract(6))


def test_bad_input(tmp_path):
    with pytest.raises(FileNotFoundError, match="no input"):
        curate(tmp_path / "nowhere", tmp_path / "a")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.zip").write_text("x")
    with pytest.raises(FileNotFoundError, match="no input"):
        curate(tmp_path / "in", tmp_path / "a")
    with pytest.raises(ValueError, match="unknown kind of file"):
        run.curate(BASE, Inputs(str(tmp_path / "in"), pattern="*.zip"), tmp_path / "a")
    with pytest.raises(ValueError, match="a web server lists no files"):
        curate("https://data.example.org", tmp_path / "a")
    with pytest.raises(ValueError, match="where.on is 'moon'"):
        run.Where(on="moon")
    with pytest.raises(ValueError, match="needs `time` and `partition`"):
        run.Where(on="slurm")


SBATCH = """#!/bin/bash
# Runs nothing: keeps the script and the dependency it was given, and says a number as Slurm does.
n=$(ls "$SHIM_LOG" | wc -l)
cp "${@: -1}" "$SHIM_LOG/$n.sh"; echo "$@" > "$SHIM_LOG/$n.args"
echo "Submitted batch job $((100 + n))"
"""


@pytest.mark.slow
def test_slurm_jobs_are_submitted_in_order_and_a_task_of_one_runs(crawl, tmp_path, monkeypatch):
    tools, log = tmp_path / "bin", tmp_path / "log"
    tools.mkdir()
    log.mkdir()
    for name, text in (("sbatch", SBATCH), ("scontrol", "#!/bin/bash\necho node1\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    monkeypatch.setenv("SHIM_LOG", str(log))
    where = run.Where(on="slurm", tasks=2, memory_gb=3, slurm={"time": "1:00:00", "partition": "cpu", "qos": "normal"})
    folder = curate(crawl, tmp_path / "runs", BASE, where)
    assert not (folder / "documents").exists()
    script = (folder / "logs" / "pages" / "launch_script.slurm").read_text()
    for line in ("#SBATCH --partition=cpu", "#SBATCH --time=1:00:00", "#SBATCH --mem-per-cpu=3G",
                 "#SBATCH --array=0-1", "launch_pickled_pipeline"):
        assert line in script, line
    waits = [path.read_text() for path in sorted(log.glob("*.args"), key=lambda p: int(p.stem))]
    assert sum("--dependency=afterok" in wait for wait in waits) >= 4  # every job but the first waits for the last
    command = script.strip().splitlines()[-1].partition("launch_pickled_pipeline")[2].split()
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "1", "SLURM_NODELIST": "node1", "SLURM_NODEID": "0",
                   "SLURM_JOB_ID": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(["launch_pickled_pipeline", *command], env=environment, check=True, stderr=subprocess.DEVNULL)
    assert os.listdir(folder / "logs" / "pages" / "completions") == ["00001"]
    assert len(documents(folder / "work" / "pages")) > 5
    with pytest.raises(ValueError, match="were submitted and have not finished .pages, signatures"):
        curate(crawl, tmp_path / "runs", BASE, where)


RAY = """import sys; sys.path.insert(0, sys.argv[1])
import ray, test_run
from jaxllm.data.curate import run
if __name__ == '__main__':
    ray.init(num_cpus=2, include_dashboard=False)
    print('run:', test_run.curate(sys.argv[2], sys.argv[3], test_run.BASE.without('minhash'),
                                  run.Where(on='ray', workers=2, tasks=2, memory_gb=1)))
"""


@pytest.mark.slow
def test_ray_gives_the_same_documents(crawl, finished, tmp_path):
    """Two passes of two tasks: every task of every pass is a process there, which takes seconds to start."""
    pytest.importorskip("ray", reason="needs the extra `curate-cluster`")
    (tmp_path / "go.py").write_text(RAY)
    command = [sys.executable, str(tmp_path / "go.py"), os.path.dirname(__file__), str(crawl), str(tmp_path / "runs")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True,
                          text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = next((tmp_path / "runs").iterdir())
    ours, theirs = documents(finished / "documents"), documents(folder / "documents")
    assert theirs.keys() == ours.keys() | {"good-7", "twin"} and theirs["twin"]["text"] == theirs["good-7"]["text"]
    assert all(theirs[id_]["text"] == row["text"] for id_, row in ours.items())
