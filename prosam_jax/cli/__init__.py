"""The command `prosam`: one module per verb, and what they share.

Results go to stdout, progress and errors to stderr. The exit status is 0 for success, 1 for an
error that the user can fix (one line), 2 for a command line that is not understood, and 128 + N if
signal N ended the command. A bug keeps its traceback.
"""

import argparse
import contextlib
import gc
import importlib
import io
import logging as python_logging
import os
import platform
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from typing import NoReturn

import prosam_jax
from prosam_jax.cli import compiled, settings
from prosam_jax.errors import UserError, printable
from prosam_jax.training.signals import ENDING, Stopped, Terminated, heard

VERBS = {
    "segment": "segment the object of a reference in other pictures",
    "train": "train a prompt encoder",
    "evaluate": "score a trained prompt encoder on novel classes",
    "export": "write a run's prompt encoder to one file",
    "prepare": "prepare a benchmark's files, or your own, for training",
    "weights": "list, fetch, convert, verify and share weight files",
    "cache": "compute SAM's embeddings of a run's target images in advance",
    "episodes": "print a benchmark's episodes",
    "demo": "train and compare methods on generated pictures",
    "reproduce": "make tables of the paper again",
}

EXAMPLES = """examples:
  prosam segment --reference cat.jpg --mask cat.png --targets photos/ --out masks/
  prosam train --config pascal --config.data.root=VOC2012 --config.data.fold=1 --workdir runs/p1
  prosam evaluate --workdir runs/p1
  prosam weights list

`prosam VERB --help` has more."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, given without the program's name; returns the exit status."""
    with heard():
        try:
            _unfailing()
            try:
                args = parse_args(sys.argv[1:] if argv is None else argv)
                _quiet()
                compiled.keep()
                return args.run(args) or 0
            finally:
                if sys.stdout:  # None where it is closed
                    # At the interpreter's end a reader that has gone would be an error.
                    sys.stdout.flush()
        except Stopped as stopped:
            return _end(str(stopped), 128 + stopped.signum)
        except Terminated as ended:
            return _end("stopped", 128 + ended.signum)
        except KeyboardInterrupt:
            return _end("stopped", 128 + signal.SIGINT)
        except BrokenPipeError:  # the reader of stdout, such as `head`, has ended
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except (UserError, FloatingPointError, OSError) as error:
            message = printable(str(error), keep="\n")
            return _end(f"error: {message}", 1)


def command(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command line as `main` does, and ends the process with its status."""
    status = main(argv)
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)  # all is done, and the status tells what
    if "grain" in sys.modules:
        # JAX holds the last batch until a collection, and one of Grain's threads then frees its
        # shared memory. If it is not freed, Python prints a warning.
        gc.collect()
        time.sleep(0.2)
    if status:
        # Threads of JAX, Orbax and Grain may be at work still. An interpreter that ends in the
        # usual way waits for those that hang, and those that do not may crash it.
        os._exit(status)
    sys.exit(status)


def _end(line: str, status: int) -> int:
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
    return status


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line; call its `run` with the result to execute it.

    Raises:
        UserError: A setting is unknown, or its value has the wrong type.
        SystemExit: The command line is not understood, or asks for help.
    """
    rest, given = settings.split(argv)
    verb = next((x for x in rest if not x.startswith("-")), None)
    args, surplus = _parser(verb).parse_known_args(rest)
    if surplus:
        args.parser.error(f"unrecognized arguments: {' '.join(surplus)}")
    if not hasattr(args, "run"):  # a verb is missing, or what it is to do
        args.parser.print_help(sys.stderr)
        raise SystemExit(2)
    if given and not getattr(args, "takes_settings", False):
        args.parser.error(f"unrecognized arguments: {' '.join(given)}")
    args.overrides = settings.parse(given)
    return args


def _unfailing() -> None:
    """Lets names be printed that the terminal's encoding does not know."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _quiet() -> None:
    from absl import logging

    # Of odd EXIF data and of large pictures. What keeps one from being read is an error.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # Orbax's import gives Python's logging a handler, which would repeat what this client prints.
    python_logging.getLogger("huggingface_hub").propagate = False
    # Orbax warns about every checkpoint without a metric, and most of ours have none on purpose.
    logging.set_verbosity(logging.ERROR)


def _parser(verb: str | None) -> argparse.ArgumentParser:
    """The parser with the flags of one verb; modules of the others are not imported."""
    parser = argparse.ArgumentParser(
        prog="prosam",
        usage="%(prog)s [-h] [--version] VERB ...",
        description="Visual reference segmentation with probabilistic prompts (ProSAM).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print versions and exit")
    parser.set_defaults(parser=parser)
    verbs = parser.add_subparsers(metavar="VERB, one of:", title="verbs", prog="prosam")
    for name, what in VERBS.items():
        module = importlib.import_module(f"prosam_jax.cli.{name}") if name == verb else None
        doc = module.__doc__ if module else None
        one = verbs.add_parser(
            name,
            help=what,
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        one.set_defaults(parser=one)
        if module:
            module.add_arguments(one)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import flax
        import jax

        print(
            f"prosam_jax {prosam_jax.__version__}, jax {jax.__version__}, flax {flax.__version__}, "
            f"Python {platform.python_version()}, {platform.platform()}"
        )
        parser.exit()
