"""How quick this is beside PyTorch, in one run: training and generation, the loader, and the time to the first step.

    pip install -e '.[interop]'        # the PyTorch peers; without them our side alone is measured
    python -m experiments.benchmark --workdir=runs/benchmark
    python -m experiments.benchmark --config.sections="('loader',)" --config.loader.tokens="(5_000_000, 500_000_000)"

About an hour on 2 CPU cores. Written: benchmark.md (the table of docs/benchmarks.md) and benchmark.json.
Expected: docs/benchmarks.md.
"""

from ml_collections import ConfigDict

SECTIONS = ("train_cpu", "generate", "loader", "startup", "train_gpu", "generate_gpu", "engine")


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) is one section to measure."""
    config = ConfigDict()
    # What to measure, of train_cpu, generate, loader, startup, engine, and of train_gpu and generate_gpu, which are
    # left out where there is no GPU.
    config.sections = (arg,) if arg else SECTIONS
    # Every rival is tried once; the best `finalists` of each side are then measured in turn, `rounds` times each, and
    # medians compared.
    config.finalists = 2
    config.rounds = 7
    # Seconds of one measurement, at least one step.
    config.seconds = 4.0
    # Threads that PyTorch computes with; 0 = the physical cores, which JAX takes by itself.
    config.threads = 0

    _training(config)
    _decoding(config)
    _engine(config)
    _loader_and_startup(config)
    return config


def _training(config: ConfigDict) -> None:
    """Sections train_cpu and train_gpu."""
    # Rivals in training: "unrolled/scan DTYPE" and "plain/transformers eager/compiled DTYPE".
    config.train_cpu = ConfigDict()
    config.train_cpu.ours = ("unrolled float32", "scan float32", "unrolled bfloat16", "scan bfloat16")
    config.train_cpu.peers = tuple(f"{model} {mode} {dtype}" for model in ("plain", "transformers")
                                   for mode in ("eager", "compiled") for dtype in ("float32", "bfloat16"))
    config.train_cpu.cases = ConfigDict({
        # nanoGPT's configuration for a laptop's CPU.
        "a": case("4 layers, 128 wide", 65, 128, 4, 4, 64, batch=12),
        "b": case("6 layers, 256 wide", 4096, 256, 6, 8, 256, batch=8),
        "c": case("GPT-2 124M", 50257, 768, 12, 12, 256, batch=2, together=False)})

    # As train_cpu, on a GPU.
    config.train_gpu = ConfigDict()
    config.train_gpu.ours = ("scan bfloat16", "unrolled bfloat16")
    config.train_gpu.peers = ("plain compiled bfloat16",)
    config.train_gpu.cases = ConfigDict({
        "124M": case("GPT-2 124M", 50257, 768, 12, 12, 1024, batch=16, chunks=4, together=False),
        "1558M": case("GPT-2 1558M", 50257, 1600, 48, 25, 1024, batch=4, chunks=4, together=False)})


def _decoding(config: ConfigDict) -> None:
    """Sections generate and generate_gpu."""
    # Greedy generation with the cache on the CPU: prompts of `prompt` tokens, `new` more for each.
    config.generate = ConfigDict()
    config.generate.models = ("gpt2_124m", "smollm2_135m")
    # Model folders to take weights from, by model; "" draws random ones (the rates are the same).
    config.generate.weights = ConfigDict({"gpt2_124m": "", "smollm2_135m": ""})
    config.generate.batches = (1, 32)
    config.generate.prompt = 32
    config.generate.new = 32
    # Schemes of our weights, with activations in float32 (bfloat16 is bfloat16 throughout).
    config.generate.ours = ("float32", "int8", "int8_dynamic")
    # dtypes of transformers' model; "bfloat16" is slower on a processor without units for it.
    config.generate.transformers = ("float32",)
    # Kinds of GGUF that llama.cpp runs, where the packages xllamacpp and gguf are installed.
    config.generate.llama_cpp = ("F16", "Q8_0")
    # As config.finalists and config.rounds; `together` as in `case` below.
    config.generate.finalists = 3
    config.generate.rounds = 3
    config.generate.together = True

    # The same on a GPU.
    config.generate_gpu = ConfigDict({
        "models": ("smollm2_135m", "qwen2_5_1.5b", "llama3_8b"), "weights": {"smollm2_135m": ""}, "batches": (1, 8, 64),
        "prompt": 32, "new": 128, "ours": ("bfloat16", "int8"), "transformers": ("bfloat16",), "llama_cpp": (),
        "finalists": 2, "rounds": 3, "together": False})


def _engine(config: ConfigDict) -> None:
    """Section engine."""
    # The engine: `requests` that arrive at random, `per_second` of them, served on so many slots, 1 first.
    config.engine = ConfigDict()
    config.engine.model = "smollm2_135m"
    # A model folder with the weights, which is also asked how exact the log-probabilities are; "" draws them at random.
    config.engine.weights = ""
    config.engine.dtype = "float32"
    config.engine.slots = (1, 32)
    config.engine.capacity = 256
    config.engine.chunk = 64
    config.engine.requests = 64
    # Lengths are drawn evenly from the first to the last but one.
    config.engine.prompt = (8, 97)
    config.engine.new = (16, 129)
    config.engine.per_second = 8.0
    config.engine.rounds = 3


def _loader_and_startup(config: ConfigDict) -> None:
    """Sections loader and startup."""
    # Batches of batch x length tokens out of a corpus of `tokens` (2 bytes each; 500_000_000 is 1 GB).
    config.loader = ConfigDict()
    config.loader.tokens = (5_000_000,)
    config.loader.batch = 32
    config.loader.length = 1024
    config.loader.seconds = 3.0

    # From the start of the process to the first finished training step.
    config.startup = ConfigDict()
    config.startup.case = case("6 layers, 256 wide", 4096, 256, 6, 8, 256, batch=8)
    del config.startup.case["together"]  # one process at a time
    config.startup.ours = "unrolled float32"


def case(name: str, vocab_size: int, dim: int, layers: int, heads: int, length: int, batch: int, chunks: int = 1,
         together: bool = True) -> ConfigDict:
    """One size; `chunks` is loss_chunks of our side.

    `together` holds the processes of all finalists at once; where they are too large for that, each round starts anew.
    """
    return ConfigDict({"name": name, "vocab_size": vocab_size, "dim": dim, "layers": layers, "heads": heads,
                       "length": length, "batch": batch, "chunks": chunks, "together": together})


def sweep() -> list[dict]:
    """Each section by itself."""
    return [{"sections": (name,)} for name in SECTIONS]
