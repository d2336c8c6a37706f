"""A pure functional decoder-only transformer: configuration, parameters, forward, cache."""
