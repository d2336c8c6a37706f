"""Doctests of the games need the extra `games`; without it pytest passes these files by."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("pgx") and importlib.util.find_spec("pyspiel") else [
    "game*.py", "self_play.py"]
