"""Doctests here need the extra `serve`; without it pytest passes these files by."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("fastapi") and importlib.util.find_spec("uvicorn") else ["*.py"]
