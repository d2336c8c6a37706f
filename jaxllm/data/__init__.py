"""From documents to batches: sources, tokenizers, shards, packing, and a small made-up world."""
