"""Ask a model what it knows, teach it to refuse what it does not, and measure both on people it never met.

    python -m experiments.interrogate
    python -m experiments.interrogate --config=configs/interrogate.py:models/smollm2 --config.text=articles.txt

Expected, three seeds: of the unknown 0.96 answered wrongly before and 0.14 to 0.31 after, with 0.07 to 0.13 of the
known refused; 0.10 and 0.03 by the threshold. The bar of 0.20 and 0.10 is missed by a hair. docs/interrogate.md has the
tables. Written:

    runs/interrogate/report.md .html results.json
    runs/interrogate/replies.jsonl             every test question with its replies and verdicts
    runs/interrogate/stages/                   models before and after, and what is kept between runs
"""

from ml_collections import ConfigDict

from configs import lab


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) is a chat model's folder, for which all is made smaller."""
    config = ConfigDict()
    # The base model (experiments.pretrain), trained once for each seed, of the world that its sources name.
    config.base = lab.get_config()
    # Of its own: a vocabulary in which most values are one token, and more passes. The surer a base is of what it was
    # told often, the better its own uncertainty tells whom it does not know.
    config.base.data.tokenizer.vocab_size = 2048
    config.base.steps, config.base.validation_steps, config.base.checkpoint_steps = 6000, 3000, 1500
    # The world to ask about, "SEED:SIZE", where the base's sources are files of its documents; "" is the one they name.
    config.world = ""
    # A chat model's folder instead, "{seed}" standing for the seed. It is not fine-tuned on questions first.
    config.model = arg or ""
    # Where paragraphs come from that questions are made of (docs/sources.md), and the field with the text; "" asks
    # the world's table.
    config.text = ""
    config.text_key = "text"
    # One run each: of the world, the base model, the split, the samples and the order.
    config.seeds = (0, 1, 2) if not arg else (0,)

    _asking(config, arg)
    _teaching(config, arg)
    _probe_and_api(config)
    return config


def _asking(config: ConfigDict, arg: str | None) -> None:
    """The chat model, the sides, and what is asked."""
    # The chat model made of the base: which bands' facts it is trained on, in how many wordings each, and how. All
    # people of the band are among them, of every side: none of the sides is to look as if it had been seen before.
    config.sft = ConfigDict()
    config.sft.bands = ("often",)
    # Facts told once, drawn at random, for each of those: annotators write what the model does not know as well. It
    # learns to make things up, and stays less sure of what it makes up.
    config.sft.once = 1.0
    config.sft.wordings = 2
    config.sft.steps = 60
    config.sft.batch_size = 8
    config.sft.learning_rate = 5e-4

    # Shares of the people (or passages) for training and for validation; the rest is for the test.
    config.split = (0.65, 0.15)
    # Wordings in which each fact is asked, of those that documents use.
    config.wordings = 2
    # Ask the test side in the one wording that no document uses and no training has. So small a base understands few of
    # those questions, even about people that it knows.
    config.held_out_wording = False
    # Most questions of a band on each side.
    config.most = ConfigDict()
    config.most.train, config.most.validation, config.most.test = (850, 160, 300) if not arg else (32, 16, 24)

    # The interrogation: samples of each question, their temperature, and tokens of a reply.
    config.samples = 4
    config.temperature = 1.0 if not arg else 0.7
    config.max_tokens = 16
    # Questions run together.
    config.ask_batch = 64 if not arg else 8
    # A question is unknown when at most so large a share of its samples is right, known from the other share on.
    config.unknown_share = 0.25
    config.known_share = 0.75 if not arg else 0.5


def _teaching(config: ConfigDict, arg: str | None) -> None:
    """Refusals, and the fine-tuning on them."""
    # What to say to the unknown, drawn at random. They begin alike: greedy decoding takes the likeliest first word, so
    # wordings that part there would share their probability and lose against one made-up answer.
    config.refusals = ("I do not know.", "I do not know that.", "I am not sure.", "I have not read about that.")
    # Fine-tuning in rounds, each on so many questions, no question twice before all had their turn. After each the
    # validation side is asked; the round nearest to the bar is taken.
    config.rounds = 10 if not arg else 3
    config.round_questions = 800 if not arg else 32
    config.round_steps = 20 if not arg else 4
    config.batch_size = 8 if not arg else 4
    config.row_length = 128 if not arg else 256
    # Recipes to choose from, on the validation side. The first blocks, left alone, cannot learn names by heart.
    config.recipes = ConfigDict()
    config.recipes.last_blocks = recipe(2, 1.5e-4, refused_share=0.33) if not arg else recipe(2, 1e-4)
    # The bar: most of the unknown answered wrongly, and most of the known refused. It decides what is nearest.
    config.bar = (0.20, 0.10)


def _probe_and_api(config: ConfigDict) -> None:
    """What foresees a wrong answer; who writes questions and judges."""
    # The probe: pulls of its weights to choose from, folds of the cross-validation, and runs with shuffled labels.
    config.probe_l2 = (1e-3, 1e-2, 1e-1)
    config.probe_folds = 5
    config.probe_shuffles = 5

    # A model behind an OpenAI API (experiments/serve.py is one): where, the variable that holds its key, seconds a
    # request may take, and how often a reply that cannot be read is asked for again.
    config.api = ConfigDict()
    config.api.base_url = "http://127.0.0.1:8000/v1"
    config.api.key_env = "OPENAI_API_KEY"
    config.api.seconds = 60.0
    config.api.attempts = 3
    # The model that writes questions on paragraphs, and how many on each; "" is the template.
    config.api.writer = ""
    config.api.questions = 2
    # The model that judges replies; "" is the verifier: the reply holds the truth's words.
    config.api.judge = ""


def recipe(last_blocks: int, learning_rate: float, refused_share: float = 0.5) -> ConfigDict:
    """How to teach refusals."""
    config = ConfigDict()
    # The last blocks that are trained; 0 is all of the model.
    config.last_blocks = last_blocks
    # The highest of a round.
    config.learning_rate = learning_rate
    # Of a round's questions; the others are answered.
    config.refused_share = refused_share
    return config


def sweep() -> list[dict]:
    """Thresholds by samples: does it matter how surely the model must know?"""
    return [{"samples": samples, "unknown_share": unknown} for samples in (4, 8) for unknown in (0.0, 0.25, 0.5)]
