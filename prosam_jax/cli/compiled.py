"""Compiled functions are kept for the next command, in the user's cache folder."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform

BYTES = 2**30
"""Size of the folder; what was not used for longest goes first."""


def keep() -> None:
    """Tells JAX, before it is imported, where this process and its children keep what they compile.

    Does nothing where JAX_COMPILATION_CACHE_DIR says it already. Each kind of processor and each
    version of JAX has a folder of its own, because machines may share the user's.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    name = f"compiled-jax-{importlib.metadata.version('jax')}-{_processor()}"
    folder = root / "prosam_jax" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # no home, or one that is not ours: every command compiles again
        return
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(BYTES),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }


def _processor() -> str:
    """A short name of this kind of CPU, whose instructions compiled functions contain."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    kind = {x for x in lines if x.startswith(("model name", "flags", "Features"))}
    told = "\n".join([platform.machine(), platform.processor(), *sorted(kind)])
    return hashlib.sha256(told.encode()).hexdigest()[:8]
