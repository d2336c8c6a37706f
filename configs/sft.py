"""Fine-tune a model on conversations: all of its weights or a LoRA, the loss on the assistant's words alone.

    python -m experiments.sft --config.model=runs/pretrain_tiny                     # the small world's conversations
    python -m experiments.sft --config.model=models/smollm2 --config.lora.rank=8 \
        --config.data.sources="('dolly.jsonl','talk.jsonl')" --config.data.epochs="(2,1)" --workdir=runs/smollm2_sft

The same command resumes a run that was stopped or killed. Expected: docs/sft.md. Written:

    runs/sft/model/            the model folder, its tokenizer with the chat format (a LoRA merged into the weights)
    runs/sft/data.json         what went in, and what did not
    runs/sft/checkpoints/, metrics.jsonl, samples.jsonl, events/, report.html      as in pretraining
"""

from ml_collections import ConfigDict

from configs import pretrain_tiny


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) replaces the model."""
    config = ConfigDict()
    # A model folder or a run folder: a base model, or one that chats already.
    config.model = arg or "runs/pretrain_tiny"
    # Of the order of the data, of a LoRA's factors and of the noise on new tokens.
    config.seed = 0
    # Updates, each on batch_size rows of row_length tokens; 0 = as many as the epochs need.
    config.steps = 0
    config.batch_size = 8
    config.row_length = 128
    # Pieces of a batch whose gradients are summed before the update; saves memory, changes nothing else.
    config.microbatches = 1
    # Devices along (data, fsdp, tensor); -1 is the rest.
    config.mesh = (-1, 1, 1)

    # Chat format (docs/chat.md): "" is the tokenizer's own, or im_sep (chatml) for a base model; else im_sep, chatml,
    # llama3, gemma, or the source of a Jinja template. The model folder that is written bears it.
    config.template = ""
    # How the format's tokens start in a base model, which never saw them: like (a text that serves the same end),
    # mean (of all tokens), untouched. A model that has a chat template keeps its own rows.
    config.start_tokens = "like"

    _data(config)
    _training(config)
    _along_the_way(config)
    return config


def _data(config: ConfigDict) -> None:
    """Which conversations, and how often."""
    config.data = ConfigDict()
    # Files in the formats of docs/sft.md, or "world:SEED[:SIZE]".
    config.data.sources = ("world:0",)
    # The format of each source by name; () or "" finds it from the first record.
    config.data.formats = ()
    # Of OASST trees: "best" (the best-ranked path of each) or "all".
    config.data.paths = "best"
    # How often each source is read in the run; () = once each.
    config.data.epochs = ()
    # Instead: each source's share of the rows of a run of `steps`.
    config.data.weights = ()
    # Share of each source's conversations held out for validation, by a hash of the conversation; 0 = none.
    config.data.validation_fraction = 0.05


def _training(config: ConfigDict) -> None:
    """What is trained, and how."""
    config.lora = ConfigDict()
    # Columns of the factors; 0 trains all weights.
    config.lora.rank = 0
    # The correction counts alpha / rank.
    config.lora.alpha = 16.0
    # Matrices that get factors (query, key, value, output, up, gate, down, head, embedding/tokens); () = all of the
    # blocks.
    config.lora.targets = ()

    # config.execution, loss_chunks, optimizer, z_loss, ema_decay and max_skips: every key as in
    # configs/pretrain_tiny.py, but for the ones below. Muon trains no LoRA.
    pretrain_tiny.training(config)
    # A small model of the world: 5e-4 to 1e-3; a published one: 1e-5 to 5e-5 for all weights, 1e-4 to 5e-4 for a LoRA.
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 10
    config.optimizer.schedule = "linear"
    config.optimizer.weight_decay = 0.0


def _along_the_way(config: ConfigDict) -> None:
    """What is written while it trains."""
    # Steps between progress lines, validations, samples and checkpoints (each is also done at the end).
    config.log_steps = 20
    config.validation_steps = 100
    config.sample_steps = 200
    config.checkpoint_steps = 200
    # Batches per validation of a source; 0 = all that is held out.
    config.validation_batches = 0
    # Checkpoints kept besides the best one.
    config.keep_checkpoints = 2
    # Questions to reply to along the way, tokens of a reply at most, and the temperature (0 = greedy).
    config.sample_prompts = ("Hello!", "What can you tell me?")
    config.sample_tokens = 40
    config.sample_temperature = 0.7
    # Project of Weights & Biases; "" = not used.
    config.wandb_project = ""


def sweep() -> list[dict]:
    """All weights against a LoRA, each at three learning rates."""
    return [{"lora.rank": rank, "optimizer.learning_rate": rate * (10 if rank else 1)}
            for rank in (0, 8) for rate in (1e-4, 3e-4, 1e-3)]
