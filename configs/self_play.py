"""Beyond the teacher: imitation of a middling expert, then self-play, at games that are written as text.

    python -m experiments.self_play --workdir=runs/self_play
    python -m experiments.self_play --config=configs/self_play.py:connect_four --workdir=runs/connect_four
    python -m experiments.self_play --config=configs/self_play.py:othello --workdir=runs/othello       # on 6x6

Needs the `games` extra. Expected of the first: the league about 130 Elo above imitation, which stays at or below the
expert; about eight minutes of processor time. The others were only seen to run. docs/self_play.md has the numbers.
"""

from ml_collections import ConfigDict

from configs.lab import shape


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` is the game: tic_tac_toe (None), connect_four or othello."""
    game = arg or "tic_tac_toe"
    small = game == "tic_tac_toe"
    config = ConfigDict()
    # One of jaxllm.rl.games.GAMES; its tokens are its moves, and one that begins a game.
    config.game = game
    # Of weights, games and draws; each is a whole run of every arm.
    config.seeds = (0, 1, 2)
    # The model, without its vocabulary and positions, which are the game's.
    config.shape = shape(64, layers=2 if small else 3)
    # How often the expert looks for what the other side threatens, and how often it is careless (`Expert`).
    config.expert = ConfigDict({"looks": 0.5, "careless": 0.2})
    # Share of the games of every kind, those that are judged too, that begin with 0 to 3 random moves.
    config.openings = 0.7
    # Games that are played at once. All shapes follow from it.
    config.games = 128

    # Learning the expert's games: how many, updates on batches of so many, and the highest rate.
    config.imitation = ConfigDict({"games": 19_200 if small else 12_800, "steps": 500, "batch_size": 128,
                                   "learning_rate": 3e-3})
    # The control imitates so many times as many games for so many times as many updates.
    config.longer = 2

    # Self-play, from the imitation model on. An iteration plays three times config.games games: the learner against
    # itself, and as either side against a model of the pool.
    config.self_play = ConfigDict()
    config.self_play.iterations = 100
    # Rate of AdamW, reached after ten iterations and kept.
    config.self_play.learning_rate = 5e-4
    # Iterations between models that are kept: they are rated, and the last few join the pool beside the imitator.
    config.self_play.keep = 25
    config.self_play.pool = 4
    # Of jaxllm.rl.policy_settings; baseline names the advantage, whose groups are the sides.
    config.self_play.baseline = "reinforce++_baseline"
    config.self_play.epochs = 2
    config.self_play.clip = 0.2
    config.self_play.entropy = 0.01
    # "league", and besides: "alone" plays itself only, every game from the first move; "alone_openings" plays itself
    # only, with the random openings of the league.
    config.arms = ("league", "alone")

    # Rating. Temperatures at which all models play, the first being that of the curves and of the bar; games of every
    # ordered pair of players are rounds x config.games (models on their way: config.games).
    config.temperatures = (1.0, 0.1)
    config.rounds = 2
    # Draws of the bootstrap over games.
    config.bootstrap = 200
    # Where the game cannot be solved: leaves that the strong player's search looks at for a move, and the judge's after
    # each legal move of a position. In Othello each leaf is judged by `rollouts` random games.
    config.player_simulations = 100 if game == "connect_four" else 25
    config.judge_simulations = 2000 if game == "connect_four" else 50
    config.rollouts = 8 if game == "othello" else 1
    # Whether that strong player takes part where it has to search; in 6x6 Othello that takes hours.
    config.search_plays = game != "othello"

    # Move 37: moves of the league, at this temperature and in so many games against the imitator, that the imitator
    # gave less probability than `rare`; better when the judge values them at least `margin` above the imitator's own.
    config.rare = ConfigDict({"below": 1e-3, "temperature": 0.1, "games": 1024 if small else 256,
                              "margin": 0.5 if small else 0.2})
    # Most positions for the judge; the rest are left out at random.
    config.rare.judged = {"tic_tac_toe": 2000, "connect_four": 200}.get(game, 40)
    # Where models are kept between runs.
    config.cache = "~/.cache/jaxllm/lab"
    return config


def sweep() -> list[dict]:
    """What holds a league together: its pool by its random openings."""
    return [{"self_play.pool": pool, "openings": share} for pool in (1, 4) for share in (0.0, 0.7)]
