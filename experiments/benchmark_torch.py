"""The PyTorch peers of the benchmark: GPT-2 as transformers has it and as a plain module, each at its best."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

Run = Callable[[int], float]


class Attention(nn.Module):
    """Causal self-attention: one product for q, k and v, then PyTorch's fused kernel."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, D = x.shape
        q, k, v = (y.view(B, T, self.heads, -1).transpose(1, 2) for y in self.qkv(x).split(D, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(y.transpose(1, 2).reshape(B, T, D))


class Block(nn.Module):
    """GPT-2's block: each half normalised before, added after."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class PlainGPT(nn.Module):
    """GPT-2 in as few PyTorch modules as it takes; returns the mean cross entropy of `targets`."""

    def __init__(self, vocab_size: int, dim: int, layers: int, heads: int, length: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, dim), nn.Embedding(length, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.positions.weight[:tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class TransformersGPT(nn.Module):
    """transformers' GPT2LMHeadModel under the same call."""

    def __init__(self, vocab_size: int, dim: int, layers: int, heads: int, length: int) -> None:
        super().__init__()
        self.model = GPT2LMHeadModel(gpt2_config(vocab_size, dim, layers, heads, length))

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.model(input_ids=tokens, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def gpt2_config(vocab_size: int, dim: int, layers: int, heads: int, length: int) -> GPT2Config:
    """The same architecture as `experiments.benchmark_ours.gpt`; no dropout, PyTorch's fused attention."""
    return GPT2Config(vocab_size=vocab_size, n_positions=length, n_embd=dim, n_layer=layers, n_head=heads,
                      resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa",
                      bos_token_id=vocab_size - 1, eos_token_id=vocab_size - 1)


def set_up(threads: int) -> str:
    """Threads as given, denormals flushed; returns the device."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision("high")
    return "cuda" if torch.cuda.is_available() else "cpu"


def finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def train(model: dict[str, int], batch: int, peer: str, compiled: bool, dtype: str, threads: int
          ) -> tuple[Run, dict[str, Any]]:
    """Training steps: forward, backward, clipping to norm 1, fused AdamW with decay of the matrices alone."""
    device = set_up(threads)
    module = {"plain": PlainGPT, "transformers": TransformersGPT}[peer](**model).to(device).train()
    decayed = [p for p in module.parameters() if p.ndim == 2]
    other = [p for p in module.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": other, "weight_decay": 0.0}],
                                  lr=1e-3, betas=(0.9, 0.95), fused=True)
    tokens = torch.randint(model["vocab_size"], (batch, model["length"] + 1), device=device)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    forward = torch.compile(module) if compiled else module

    def step() -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = forward(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    def run(count: int) -> float:
        finish(device)
        begun = time.perf_counter()
        for _ in range(count):
            loss = step()
        loss.item()
        return time.perf_counter() - begun

    run(3)
    return run, {"version": torch.__version__, "loss": step().item()}
