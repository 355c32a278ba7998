"""Where commands keep what they compile."""

import os
import sys

import pytest
from commands import run

from prosam_jax.cli import compiled

NAME = "JAX_COMPILATION_CACHE_DIR"


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An environment of a user who has set nothing, and their home."""
    monkeypatch.setattr(os, "environ", {**os.environ, "HOME": str(tmp_path)})
    for name in list(os.environ):
        if name.startswith(("JAX_COMPILATION", "JAX_PERSISTENT", "XDG_")):
            del os.environ[name]
    return tmp_path


def test_each_version_and_processor_has_a_folder_of_its_own(fresh, monkeypatch):
    compiled.keep()
    first = os.environ.pop(NAME)
    assert os.path.isdir(first) and first.startswith(f"{fresh}/.cache/prosam_jax/compiled-jax-")
    monkeypatch.setattr(compiled.importlib.metadata, "version", lambda name: "99.0")
    compiled.keep()
    second = os.environ.pop(NAME)
    monkeypatch.setattr(compiled, "_processor", lambda: "another")
    compiled.keep()
    assert len({first, second, os.environ[NAME]}) == 3


def test_a_users_folder_stands(fresh):
    os.environ[NAME] = "elsewhere"
    compiled.keep()
    assert os.environ[NAME] == "elsewhere" and not list(fresh.iterdir())


def test_no_home_is_no_error(fresh):
    (fresh / "file").write_text("")
    os.environ["XDG_CACHE_HOME"] = str(fresh / "file")
    compiled.keep()
    assert NAME not in os.environ


@pytest.mark.slow
def test_a_second_process_compiles_nothing(fresh):
    program = """if True:
        from prosam_jax.cli import compiled
        compiled.keep()
        import os
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # this is a small one
        import jax, jax.numpy as jnp
        from jax._src import monitoring
        found = []
        monitoring.register_event_listener(lambda name, **_: found.append(name))
        f = jax.jit(lambda x: sum(jnp.sin(x * i) @ jnp.cos(x + i) for i in range(9)))
        f(jnp.ones((64, 64))).block_until_ready()
        print(found.count("/jax/compilation_cache/cache_hits"))
    """
    hits = []
    for _ in range(2):
        result = run("env", "-u", NAME, sys.executable, "-c", program, HOME=str(fresh))
        assert result.returncode == 0, result.stderr
        hits.append(int(result.stdout))
    assert hits[0] == 0 and hits[1] > 0
