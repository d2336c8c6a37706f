"""An arena: players fight battles, somebody judges, and Bradley-Terry says how strong they are and how sure that is.

    python -m experiments.rank                                                 # the world's joke models, no download
    python -m experiments.rank --config.votes=votes.jsonl                      # votes that are there
    python -m experiments.rank --config.players="('sft=runs/sft/model','rl=runs/rl/model')" \\
        --config.prompts=prompts.jsonl --config.judge.kind=people              # a blind page, until Ctrl-C

Expected without settings: "taught little" is last by more than 500 points, and the gold judge tells nobody else apart;
before a voter who likes length "RL on length" has 68 [47, 92] points more than before the same voter without that, and
at equal style it is back. Two and a half CPU-minutes from nothing, half a minute with the models found.
docs/arena.md has what was measured. Written: report.html, report.md, results.json, replies.jsonl and the votes, from
which the same command goes on after a kill.
"""

from ml_collections import ConfigDict

from configs import policy_gradient, taste


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` is a file of votes to rank, nothing to play battles."""
    config = ConfigDict()
    # A file of votes in a form of jaxllm/evals/arena_votes.py (ours, PandaLM's, the Chatbot Arena's): rank these, play
    # nothing.
    config.votes = arg or ""
    # Who plays: "NAME=FOLDER" of a model, "NAME=http://HOST/v1#MODEL" of an OpenAI-compatible API. () is the world's
    # joke models.
    config.players = ()
    # What the players are asked: a file of prompts, or of tasks with answers for the judge "verifier".
    config.prompts = ""
    # Of the draws and the order of battles; with the world's players also of their training.
    config.seed = 0

    # How players reply: replies to a prompt, temperature, tokens at most.
    config.replies = ConfigDict({"samples": 4, "temperature": 1.0, "max_tokens": 64})
    # Battles at most, spread evenly over the pairs of players; 0 is every pair on every prompt and sample.
    config.battles = 0

    config.judge = ConfigDict()
    # "gold": the hidden judge of the world's jokes; "verifier": the tasks' own; "reward": a reward model; "model": a
    # model behind an API, asked in both orders; "people": a blind page in the browser.
    config.judge.kind = "gold"
    # Of gold, verifier and reward: scores that differ by no more are a tie; tied at or below `bad`, both are bad.
    config.judge.tie = 0.0
    config.judge.bad = 0.0
    # Of reward: the folder of a reward model.
    config.judge.reward = ""
    # Of model: "http://HOST/v1#MODEL"; and a sentence that says what is better, "" is the usual one.
    config.judge.model = ""
    config.judge.criterion = ""
    # Of people: where the page listens, and the share of a person's battles that somebody else has judged already.
    config.judge.host = "127.0.0.1"
    config.judge.port = 8010
    config.judge.overlap = 0.2

    # APIs: the environment variable with the key, seconds waited for a reply, attempts, and requests at a time.
    config.api = ConfigDict({"key_env": "OPENAI_API_KEY", "seconds": 60.0, "attempts": 3, "together": 8})

    config.rating = ConfigDict()
    # "half": a tie is half a win; "davidson": ties have a rate of their own.
    config.rating.ties = "half"
    # Of the penalty prior / 2 |strengths|^2. At 0 a player who won or lost everything is refused; 0.1 moves nobody who
    # has some tens of votes.
    config.rating.prior = 0.1
    # What voters are asked to overlook at equal style: some of length, headers, lists, bold, position.
    config.rating.style = ("length", "headers", "lists", "bold")
    # The player that has 1000 points; "" puts the mean there.
    config.rating.anchor = ""
    # Draws of the bootstrap, and random orders of the votes for online Elo.
    config.rating.samples = 1000
    config.rating.orders = 200

    config.world = world_config()
    # Where the world's models are kept between runs and experiments.
    config.cache = "~/.cache/jaxllm/lab"
    return config


def world_config() -> ConfigDict:
    """What `experiments.rank_world` reads, when no players are named."""
    config = ConfigDict()
    # Things of the test split that jokes are asked about, at most 38.
    config.things = 38
    # The model that all begin as, and what is different for the one that was taught little.
    config.start = taste.start_config()
    config.little = ConfigDict({"talks": 1000, "epochs": 1})
    # Whose taste one player is improved by, see jaxllm.data.world_taste.Human: what is felt on average.
    config.human = taste.get_config().human
    del config.human["noise"], config.human["tie"]
    # The simulated person who votes beside the gold judge: one who likes length.
    config.voter = ConfigDict({"noise": 0.7, "length_bias": 0.5, "funny_bias": 0.0, "polite_bias": 0.0, "tie": 0.1})
    # The RL of both improved players, see configs/policy_gradient.py.
    config.rl = policy_gradient.without_folder(policy_gradient.policy_config())
    config.rl.steps = 20
    config.rl.optimizer.learning_rate = 3e-4
    return config


def sweep() -> list[dict]:
    """How much the voter likes length: from when on does the wrong player lead?"""
    return [{"world.voter.length_bias": bias} for bias in (0.0, 0.1, 0.25, 0.5, 1.0)]
