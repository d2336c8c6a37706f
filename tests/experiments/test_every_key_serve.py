"""Every key of the server matters: it is built with stand-ins of engine, worker and application, which tell of it."""

import json
from types import SimpleNamespace

import pytest
from flip_keys import Flips, TracedJax, changed, digest, leaves
from flip_lab import MODEL, START

pytest.importorskip("fastapi", reason="needs the extra `serve`")

from configs import serve as serve_config  # noqa: E402
from experiments import serve  # noqa: E402
from jaxllm.serve import api, preference_store, served, server, worker  # noqa: E402


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": [{"role": "user", "content": "?"}]}))
    config = changed(serve_config.get_config(), {"model": "a model", "capacity": 64})
    values = {"model": "another", "model_id": "small", "host": "0.0.0.0", "hosts": ("box.example",), "port": 8001,
              "weights": "int8", "dtype": "bfloat16", "cache_dtype": "int8", "begin": "", "api_key_env": "PATH",
              "cors_origins": ("https://a.example",), "prefer.prompts": str(folder / "prompts.jsonl"), "max_tokens": 9,
              "prefer.max_tokens": 9}
    collecting = {key: {"prefer.collect": True} for key in leaves(config) if key.startswith("prefer.")}
    collecting.pop("prefer.collect")

    def run(flipped, facts):
        def told(name, answer=None):
            def tell(*given, **how):
                facts.add(name, [one for one in given if isinstance(one, (str, int, float, list))], digest(how.pop(
                    "api_key", None) or ""), how)
                return answer
            return tell
        engine = SimpleNamespace(warm_up=lambda: None)
        with pytest.MonkeyPatch.context() as patch:
            for module, name, stand_in in (
                    (serve, "load_model", told("load", (START.params, MODEL, START.tokenizer))),
                    (serve, "Engine", told("engine", engine)), (serve, "jax", TracedJax(facts)),
                    (serve, "_free_port", lambda host, port: port),
                    (serve, "prepare_for_decoding", told("weights", START.params)),
                    (worker, "Worker", told("worker", SimpleNamespace(start=lambda: None))),
                    (api, "create_app", told("application")), (served.Served, "grammars", lambda self: None),
                    (preference_store, "PreferenceStore", told("store")),
                    (preference_store, "Preferring", told("preferring")),
                    (server, "Server", lambda app, made, **how: facts.add(
                        how, made.model_id, made.limits, made.begin_tokens))):
                patch.setattr(module, name, stand_in)
            serve.check(flipped)
            serve.build(flipped, str(folder))
    return Flips(config, run, values, collecting)


@pytest.mark.parametrize("key", leaves(serve_config.get_config()))
def test_every_key_of_the_server(key, serving):
    serving.check(key)
