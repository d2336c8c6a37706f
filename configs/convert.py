"""Converts a model between Hugging Face, GGUF and our own folders.

    python -m experiments.convert --config.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.target=models/smollm2
    python -m experiments.convert --config.source=Qwen2.5-0.5B --config.target=models/qwen      # a Hugging Face folder
    python -m experiments.convert --config.source=runs/pretrain_tiny --config.target=exported   # and back
    python -m experiments.convert --config.source=runs/pretrain_tiny --config.target=tiny.gguf --config.gguf=Q8_0

Expected: a progress bar over the bytes of the weights, then one line that says what was written. A model folder runs in
`experiments.sample`; a Hugging Face folder loads with `AutoModelForCausalLM.from_pretrained`; llama.cpp runs a .gguf.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) replaces the source."""
    config = ConfigDict()
    # A Hugging Face folder (config.json, safetensors), a .gguf file, or a model or run folder of ours; which one it is
    # is found by looking.
    config.source = arg or ""
    # What to write; it must not be there yet (an empty folder may).
    config.target = ""
    # "hugging_face", "gguf" or "jaxllm"; "" takes gguf for a target that ends in .gguf, hugging_face for a model
    # of ours, and jaxllm for all others.
    config.format = ""
    # Of the weights: "float32", "bfloat16" or "float16"; "" keeps the source's (float32 of a GGUF).
    config.dtype = ""
    # Of a GGUF's matrices: "F32", "F16", "Q8_0" or "Q4_0".
    config.gguf = "F16"
    # Largest file of weights in a Hugging Face folder, in GB.
    config.shard_gb = 5.0
    return config


def sweep() -> list[dict]:
    """Returns the four ways to write a GGUF."""
    return [{"gguf": scheme, "target": f"model.{scheme}.gguf"} for scheme in ("F32", "F16", "Q8_0", "Q4_0")]
