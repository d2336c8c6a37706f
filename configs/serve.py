"""Serves a model to any OpenAI client.

    python -m experiments.serve --config.model=runs/pretrain_tiny
    python -m experiments.serve --config.model=models/smollm2 --config.weights=int8 --config.slots=16
    python -m experiments.serve --config.model=models/smollm2 --config.prefer.collect=True --workdir=runs/rank
    JAXLLM_API_KEY=... python -m experiments.serve --config.model=models/smollm2 --config.host=0.0.0.0

Expected: what it loads and compiles, line by line, then the address; it stays until Ctrl-C or SIGTERM, lets what
runs finish and ends. Endpoints, limits and what is not supported: docs/serve.md. The page that collects
rankings: docs/preferences.md.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) replaces the model folder."""
    config = ConfigDict()
    # A model folder, or a run folder that holds one.
    config.model = arg or "runs/pretrain_tiny"
    # What clients call it; "" is the folder's name.
    config.model_id = ""

    # Where to listen. 127.0.0.1 is this machine alone; 0.0.0.0 is everybody who can reach it: set a key then.
    config.host = "127.0.0.1"
    # 0 takes a free port.
    config.port = 8000
    # Environment variable that holds the key which clients must send; without it in the environment there is none.
    config.api_key_env = "JAXLLM_API_KEY"
    # Names by which clients may call this server, beside those of the loopback; with none given and another host than
    # the loopback, any name will do.
    config.hosts = ()
    # Origins (https://example.org) whose pages may use the server from a browser; none but its own pages.
    config.cors_origins = ()

    # Requests that draw tokens at once, and how many more may wait; beyond that they are refused with 429.
    config.slots = 8
    config.queue = 64
    # Tokens of a request, prompt and answer together; 0 is the model's own limit, at most 8192.
    config.capacity = 0
    # Tokens of a prompt that are run between two steps of the others.
    config.chunk = 64
    # Prompts of which such a piece is run in one call: 1 on a CPU; 4 or 8 fill an accelerator better.
    config.together = 1
    # New tokens that one choice may have; 0 is the capacity.
    config.max_tokens = 0
    # Choices (n) of one request, and prompts of one call of /v1/completions.
    config.max_samples = 16
    config.max_prompts = 64
    # Size of a request's body, MiB.
    config.max_body_mib = 4
    # Seconds that running requests get to finish when the server is told to stop.
    config.grace_seconds = 30.0

    # Weights in memory: "float32", "bfloat16", "int8" or "int4". Another than float32 changes the answers a little.
    config.weights = "float32"
    # dtype of activations: "float32" or "bfloat16".
    config.dtype = "float32"
    # Keys and values of the cache: "" is the dtype of the activations; "float32", "bfloat16" or "int8".
    config.cache_dtype = ""
    # Special token put before a text of /v1/completions: "auto" is what the model's documents begin with; "" is none.
    config.begin = "auto"

    # Whether people may rank samples of the model on the page /prefer; their rankings go to WORKDIR/rankings.jsonl.
    config.prefer = ConfigDict({"collect": False})
    # A file of prompts (one a line, or records with "prompt" or "messages"); "" lets people write their own alone.
    config.prefer.prompts = ""
    # Samples to order at a time, at most 9; how they are drawn, and their tokens at most.
    config.prefer.samples = 4
    config.prefer.temperature = 1.0
    config.prefer.max_tokens = 256
    # Share of a person's sets that somebody else has ranked already, by which agreement is measured.
    config.prefer.overlap = 0.2
    return config


def sweep() -> list[dict]:
    """Returns the weight schemes to compare on one device."""
    return [{"weights": "float32"}, {"weights": "bfloat16", "dtype": "bfloat16"}, {"weights": "int8"},
            {"weights": "int4"}]
