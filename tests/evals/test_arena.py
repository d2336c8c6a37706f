"""Bradley-Terry with ties, covariates and intervals: against choix, scikit-learn, and votes of known strengths."""


import choix
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxllm.evals import arena, elo
from jaxllm.evals.agreement import cohen_kappa
from jaxllm.evals.arena_votes import read_votes, tally
from jaxllm.evals.elo import bradley_terry
from jaxllm.evals.votes import Votes

NAMES = tuple("abcde")


def some_votes(count=400, ties=0.2, style=0.7, seed=0):
    """Votes among five, a covariate that the voters like, three votes in a group."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 5, count)
    second = (first + rng.integers(1, 5, count)) % 5
    x = rng.normal(size=count)
    margin = 0.4 * (second - first) + style * x
    points = np.where(rng.random(count) < ties, 0.5, (rng.random(count) < 1 / (1 + np.exp(-margin))).astype(float))
    return Votes(NAMES, first, second, points, np.arange(count) // 3, x[:, None], ("length",))


def plain(votes):
    return Votes(votes.players, votes.first, votes.second, votes.points, votes.groups)


def test_strengths_are_those_of_choix_and_of_elo():
    votes = plain(some_votes())
    # Choix knows no ties: each vote stands twice, a tie once for either side.
    pairs = [pair for i, j, p in zip(votes.first, votes.second, votes.points, strict=True)
             for pair in {1.0: [(i, j)] * 2, 0.5: [(i, j), (j, i)], 0.0: [(j, i)] * 2}[p]]
    found = arena.fit(votes).strengths
    for theirs in (choix.ilsr_pairwise(5, pairs), choix.opt_pairwise(5, pairs, tol=1e-10)):
        assert np.abs(found - (theirs - theirs.mean())).max() < 1e-6
    assert np.abs(arena.fit(votes, prior=0.3).strengths
                  - bradley_terry(arena.win_matrix(votes)[0], penalty=0.3)).max() < 1e-9


def test_the_strengths_known_for_pandalm(real_data):
    read = read_votes(real_data("pref/pandalm_testset_999x3_votes.json.xz"))
    votes = tally(read)
    found = dict(zip(votes.players, arena.fit(votes).strengths.round(3), strict=True))
    assert found == {"llama-7b": 0.695, "pythia-6.9b": 0.086, "bloom-7b": -0.013, "opt-7b": -0.214,
                     "cerebras-gpt-6.7B": -0.555}
    said = np.array([vote.points(0, 1) for vote in read]).reshape(-1, 3) * 2
    kappas = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        table = np.zeros((3, 3), int)
        np.add.at(table, (said[:, i].astype(int), said[:, j].astype(int)), 1)
        kappas.append(round(cohen_kappa(table), 3))
    assert kappas == [0.852, 0.879, 0.862]
    assert len(votes.points) == 2997 and len(np.unique(votes.groups)) == 170


def test_style_control_is_logistic_regression():
    linear = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
    votes = some_votes(ties=0.0)
    design = np.zeros((len(votes.points), 6))
    rows = np.arange(len(design))
    design[rows, votes.first], design[rows, votes.second], design[:, 5] = 1, -1, votes.covariates[:, 0]
    for prior in (1e-9, 0.5):
        theirs = linear.LogisticRegression(C=1 / prior, fit_intercept=False, tol=1e-12, max_iter=1000)
        theirs.fit(design, votes.points)
        expected = theirs.coef_[0].copy()
        expected[:5] -= expected[:5].mean()
        assert np.abs(arena.fit(votes, prior=prior).parameters - expected).max() < 1e-5
    assert arena.fit(votes).coefficients[0] == pytest.approx(0.7, abs=0.3)
    # Which reply is called the first does not matter.
    turned = Votes(NAMES, votes.second, votes.first, 1 - votes.points, votes.groups, -votes.covariates,
                         ("length",))
    assert np.abs(arena.fit(turned).parameters - arena.fit(votes).parameters).max() < 1e-9


def test_davidson_is_the_maximum_of_its_likelihood():
    votes = some_votes(ties=0.3)
    found = arena.fit(votes, ties="davidson")

    def loss(free):
        strengths, coefficient, log_nu = np.append(free[:4], -free[:4].sum()), free[4], free[5]
        margin = strengths[votes.first] - strengths[votes.second] + coefficient * votes.covariates[:, 0]
        logits = np.stack([margin / 2, np.full(len(margin), log_nu), -margin / 2])
        said = np.select([votes.points == 1, votes.points == 0.5], [0, 1], 2)
        return (np.logaddexp.reduce(logits) - logits[said, np.arange(len(said))]).sum()

    best = minimize(loss, np.zeros(6), tol=1e-12).x
    assert np.abs(found.parameters[[0, 1, 2, 3, 5, 6]] - best).max() < 1e-5
    assert found.tie == pytest.approx(np.exp(best[5]), rel=1e-4)
    expected = found.expected()
    assert np.allclose(expected + expected.T, 1) and np.allclose(np.diag(expected), 0.5)


@pytest.mark.parametrize("ties", ["half", "davidson"])
def test_the_sandwich_is_the_spread_of_arenas_played_anew(ties):
    """Many arenas from one law, three equal votes in a group: their spread is what one arena's sandwich says."""
    def arena_of(seed):
        votes = some_votes(300, seed=seed)
        every = np.repeat(np.arange(0, 300, 3), 3)  # each vote of a group says what its first said
        return Votes(NAMES, votes.first[every], votes.second[every], votes.points[every], votes.groups)

    fits = [arena.fit(arena_of(seed), ties=ties) for seed in range(120)]
    spread = np.std([fitted.strengths for fitted in fits], axis=0)
    said = np.mean([np.sqrt(np.diag(fitted.covariance)[:5]) for fitted in fits], axis=0)
    assert np.abs(said / spread - 1).max() < 0.25
    one = arena_of(7)
    fitted = arena.fit(one, ties=ties)
    draws = arena.bootstrap(one, fitted, 1000, seed=3)
    assert np.abs(draws.std(0) / np.sqrt(np.diag(fitted.covariance)) - 1).max() < 0.2
    drawn = fitted.draws(4000)
    assert np.abs(drawn.std(0) / np.sqrt(np.diag(fitted.covariance)[:5]) - 1).max() < 0.06
    single = arena.fit(Votes(NAMES, one.first, one.second, one.points), ties=ties)
    assert np.diag(fitted.covariance)[0] > 2 * np.diag(single.covariance)[0]


def test_ranks_and_claims():
    strengths = np.array([1.0, 0.0, -0.02, -1.0])
    draws = strengths + np.random.default_rng(0).normal(scale=0.1, size=(3000, 4))
    joint, pair = (arena.separated(strengths, draws, joint=joint) for joint in (True, False))
    assert joint.tolist() == [[False, True, True, True], [False, False, False, True], [False, False, False, True],
                              [False] * 4]
    assert arena.rank_intervals(joint).tolist() == [[1, 1], [2, 3], [2, 3], [4, 4]]
    # 0.32 apart with sd 0.141 is enough for one pair, and not among six.
    close = np.array([0.32, 0.0, -3.0, -6.0])
    noise = np.random.default_rng(1).normal(scale=0.1, size=(3000, 4))
    assert arena.separated(close, close + noise, joint=False)[0, 1]
    assert not arena.separated(close, close + noise)[0, 1]
    assert (pair | ~joint).all()


def test_elo_points_and_online_elo():
    assert arena.to_elo(np.array([np.log(10.0), 0.0]), anchor=1).tolist() == [1400.0, 1000.0]
    votes = plain(some_votes(style=0.0, ties=0.0))
    found = elo.online_elo(votes, k=32, orders=20, seed=1)
    ratings = np.full(5, 1000.0)
    for i, j, p in zip(votes.first, votes.second, votes.points, strict=True):
        change = 32 * (p - 1 / (1 + 10 ** ((ratings[j] - ratings[i]) / 400)))
        ratings[i] += change
        ratings[j] -= change
    assert np.allclose(found[0], ratings) and found.std(0).min() > 5  # the same votes, other orders
    points, count = arena.win_matrix(votes)
    assert points.sum() == 400 and np.array_equal(count, count.T) and np.allclose(points + points.T, count)


@pytest.mark.parametrize("change, settings, message", [
    ({"second": [1, 0, 3, 2], "first": [0, 1, 2, 3]}, {}, "nothing compares a, b with c, d"),
    ({"points": [1.0, 1.0, 1.0, 0.5]}, {}, "a, b lost no point to the others"),
    ({"points": [1.0, 0.0, 1.0, 0.0]}, {"ties": "davidson"}, "no vote is a tie"),
    ({"points": [0.5] * 4}, {"ties": "davidson", "prior": 0.1}, "every vote is a tie"),
    ({"players": ("a", "b"), "first": [0] * 4, "second": [1] * 4, "points": [1.0, 1.0, 0.5, 0.5]}, {"ties": "davidson"},
     "ties and wins and never loses"),
    ({}, {"ties": "rao"}, "choose one of half, davidson"),
    ({}, {"prior": -1.0}, "and 0 or more"),
    ({"points": [1.0, 0.0, 1.0, 0.7]}, {}, "1, 0.5 or 0"),
    ({"first": [0, 1, 2, 1]}, {}, "two different players"),
    ({"players": ("a", "a", "c", "d")}, {}, "players of two names or more"),
    ({"covariates": [[1.0]]}, {}, "do not fit 4 votes"),
])
def test_votes_that_say_nothing_are_refused(change, settings, message):
    given = {"players": tuple("abcd"), "first": [0, 1, 2, 0], "second": [1, 2, 3, 1], "points": [1.0, 1.0, 0.5, 0.0]}
    given |= change
    with pytest.raises(ValueError, match=message):
        arena.fit(Votes(given["players"], *(np.array(given[name]) for name in ("first", "second", "points")),
                              covariates=np.array(given["covariates"]) if "covariates" in given else None), **settings)


def test_covariates_that_cannot_be_told_apart_are_refused_and_a_prior_helps():
    votes = some_votes()
    by_player = (votes.first == 2).astype(float) - (votes.second == 2)
    same = Votes(NAMES, votes.first, votes.second, votes.points, None, by_player[:, None], ("length",))
    with pytest.raises(ValueError, match="length cannot be told apart from who plays"):
        arena.fit(same)
    assert np.isfinite(arena.fit(same, prior=0.1).parameters).all()
    perfect = Votes(NAMES, votes.first, votes.second, (votes.covariates[:, 0] > 0).astype(float), None,
                          votes.covariates, ("length",))
    with pytest.raises(ValueError, match="set a prior above 0"):
        arena.fit(perfect)
    beaten = Votes(("a", "b"), np.zeros(9, int), np.ones(9, int), np.ones(9))
    found = arena.fit(beaten, prior=0.1)
    assert 1 < found.strengths[0] < 5 and np.isfinite(arena.bootstrap(beaten, found, 50, prior=0.1)).all()
