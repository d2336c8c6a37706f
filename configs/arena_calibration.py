"""Can an arena be trusted? Simulated players of known strength, voters of known bias, and what the arena makes of them.

    python -m experiments.arena_calibration --workdir=runs/arena_calibration

Expected: the sandwich's 95% intervals hold 0.94 to 0.95 of the true strengths at any number of votes, the bootstrap's
0.90 at 50 votes and 0.94 from 100 on. Of six equal players some pair is told apart in 0.31 to 0.37 of the arenas pair
by pair, and in 0.02 to 0.07 jointly. The fourth best player, which writes two standard deviations longer, is first
within 100 votes, first without doubt at 800, and never at equal style. 150 CPU-seconds. docs/arena.md has what was
measured. Written: report.html, report.md, results.json, and kept/ with every part that is done.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; there are no variants."""
    del arg
    config = ConfigDict()
    # Of all draws.
    config.seed = 0
    # Players, and nats between one and the next stronger (0.2 are 35 Elo points: 55 wins in 100).
    config.players = 6
    config.step = 0.2
    # How often equal players tie: half of this.
    config.tie = 0.4
    # Arenas for each line of a table, and draws of the bootstrap in each.
    config.arenas = 200
    config.samples = 300
    # Votes of an arena, where coverage and ranks are measured.
    config.votes = (50, 100, 300, 1000, 3000)

    # Voters who judge one battle, in the arenas whose votes depend on each other; and how often each repeats what the
    # first of them said. In PandaLM's votes two of three agree on 92 battles in 100.
    config.voters = 3
    config.repeat = 0.8

    # Nats that voters give for one standard deviation of the difference in length (PandaLM's: 0.87 [0.62, 1.14]); and
    # how many standard deviations longer the gamed player's replies are. It is the fourth best.
    config.biases = (0.0, 0.3, 0.6, 0.9)
    config.longer = (1.0, 1.5, 2.0)
    # Votes of an arena in which style control is measured, and arenas.
    config.styled_votes = 2000
    config.styled_arenas = 100
    # Votes up to which it is looked for when the gamed player is first; they double from 100 on.
    config.most_votes = 12_800
    # How well length is measured where it is measured badly: correlation of what is measured with what voters see.
    config.reliability = 0.7
    return config


def sweep() -> list[dict]:
    """Strong and weak fields: how far apart players must be."""
    return [{"step": step} for step in (0.05, 0.1, 0.2, 0.4)]
