"""The project as a whole: everything imports, recipes build, README and docs tell what is there."""

import ast
import functools
import importlib
import importlib.util
import pathlib
import pkgutil
import re
import shlex
import subprocess
import sys

import grimp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import prosam_jax
from prosam_jax import cli
from prosam_jax.cli import settings
from prosam_jax.config import Config, check_setting, replaced

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in (
    ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")),
)}  # fmt: skip
README = PAGES["README.md"]
DOORS = ("train", "evaluate", "segment", "demo")


@pytest.mark.torch
def test_every_module_imports_and_says_what_it_is():
    for info in pkgutil.walk_packages(prosam_jax.__path__, "prosam_jax."):
        module = importlib.import_module(info.name)
        if not info.ispkg:
            assert module.__doc__, info.name


def test_no_two_modules_import_each_other():
    graph = grimp.build_graph("prosam_jax", cache_dir=None)
    # Names at hand for users, imported when they are asked for.
    for name in ("segmenter", "model", "sam.predictor", "sam.automatic_mask_generator"):
        graph.remove_import(importer="prosam_jax", imported=f"prosam_jax.{name}")
    above = {name: graph.find_upstream_modules(name) for name in graph.modules}
    circles = {frozenset((a, b)) for a in above for b in above[a] if a in above[b]}
    assert circles == set()


def test_shapes_and_types_are_checked_in_tests():
    from prosam_jax import resize

    with pytest.raises(TypeCheckError):
        resize.nearest(np.zeros((3, 5)), (2, 2))


@pytest.mark.parametrize("recipe", settings.recipes())
def test_every_recipe_is_valid(recipe):
    replaced(Config(), settings.recipe(recipe))


def _commands(text):
    """Command lines of a page or docstring: whole ones, of blocks, and mentions in a sentence."""
    fenced = re.findall(r"(?ms)^```(\w*)\n(.*?)^```", text)
    blocks = [block for language, block in fenced if language != "python"]
    blocks += re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE)  # a docstring's
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    for line in map(str.strip, lines):
        # [--flag] may be left out; after # is a remark.
        if re.match(r"(prosam|python|make) ", line) and "VERB" not in line:
            yield True, tuple(shlex.split(re.sub(r"\[(-.*?)\]", r"\1", line), comments=True))
    for line in re.findall(r"`((?:prosam|python|make) [^`]+)`", text):
        if "VERB" not in line:
            yield False, tuple(shlex.split(line.replace("\n", " ")))


def _docstring(path):
    """What a user sees of a file: its docstring, and examples of the command's help."""
    tree = ast.parse(path.read_text())
    strings = [x.value for x in ast.walk(tree) if isinstance(x, ast.Constant)]
    examples = [x for x in strings if isinstance(x, str) and x.startswith("examples:")]
    indented = [re.sub("(?m)^  (?=prosam)", "    ", x) for x in examples]
    return "\n\n".join([ast.get_docstring(tree) or "", *indented, ""])


CALLED = ("prosam_jax/cli/*.py", "prosam_jax/convert/*_to_flax.py", "configs/*.py", "*.py")
SOURCES = PAGES | {
    str(path.relative_to(ROOT)): _docstring(path)
    for pattern in CALLED
    for path in sorted(ROOT.glob(pattern))
}


def _of_prosam(words):
    """The arguments of `prosam` that a command line amounts to; None for another command."""
    door = re.fullmatch(r"(?:convert/(\w+)_to_flax|(\w+))\.py", words[1])
    if words[0] == "prosam":
        return words[1:]
    if words[:3] == ("python", "-m", "prosam_jax"):
        return words[3:]
    if words[0] == "python" and door and door[1]:
        return ("weights", "convert", door[1].replace("_", "-"), *words[2:])
    if words[0] == "python" and door and door[2] in DOORS:
        return (door[2], *words[2:])
    return None


def _help(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--help"])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    return printed.out


@pytest.mark.torch
@pytest.mark.parametrize("name", SOURCES)
def test_commands_are_understood(name, tmp_path, capsys, monkeypatch):
    """Each is parsed, with its recipe and its settings; nothing is done."""
    monkeypatch.chdir(tmp_path)
    for whole, words in _commands(SOURCES[name]):
        arguments = _of_prosam(words)
        said = f"{name}: {' '.join(words)}"
        if arguments is None:
            assert _is_there(words), said
            continue
        flags = [x.partition("=")[0] for x in arguments if x.startswith("-")]
        first = next((i for i, x in enumerate(arguments) if x.startswith("-")), len(arguments))
        known = _help(arguments[:first], capsys)
        for flag in flags:
            if flag.startswith("--config."):
                check_setting(flag.removeprefix("--config."))
            else:
                assert re.search(rf"{flag}\b", known), f"{said}: {flag}"
        if not whole:
            continue
        if arguments[:2] == ("weights", "convert"):  # parses when it runs
            assert cli.main(arguments) == 1, said
            assert arguments[arguments.index("--checkpoint") + 1] in capsys.readouterr().err
            continue
        args = cli.parse_args(arguments)
        if getattr(args, "takes_settings", False) and args.config != "my_recipe.py":
            args.config = args.config and str(_recipe(args.config))
            values = settings.changes(args)
            if arguments[0] in ("train", "cache", "episodes"):
                replaced(Config(), values)


def _recipe(name):
    return settings.recipes().get(name, ROOT / name)


def _is_there(words):
    """Whether what another command starts is there: a script, a module, a target of make."""
    if words[0] == "make":
        names = [x for x in words[1:] if re.fullmatch(r"[a-z][a-z-]*", x)]
        return set(names) <= set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text()))
    if words[1] != "-m":
        return (ROOT / words[1]).is_file()
    found = importlib.util.find_spec(words[2])
    return found is not None and (
        found.submodule_search_locations is None
        or importlib.util.find_spec(f"{words[2]}.__main__") is not None
    )


@pytest.mark.parametrize("page", PAGES)
def test_settings_named_exist(page):
    groups = "|".join(sorted({name.partition(".")[0] for name in _settings() if "." in name}))
    names = re.findall(r"--config\.([a-z]\w*(?:\.\w+)?)", PAGES[page])
    names += re.findall(rf"`((?:{groups})\.\w+)(?:=[^`]*)?`", PAGES[page])
    for name in names:
        check_setting(name)


@functools.cache
def _settings():
    from prosam_jax.config import flat_mapping
    from prosam_jax.config.files import to_dict

    return tuple(flat_mapping(to_dict(Config())))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGES[page])
    for link in links:
        if "://" not in link:
            assert ((ROOT / page).parent / link).exists(), link


def test_functions_named_beside_the_equations_exist():
    """In a row of a table in the README, names are of its modules or of prosam_jax.equations."""
    seen = set()
    for row in re.findall(r"(?m)^\|.*\|$", README):
        modules = re.findall(r"\(prosam_jax/([\w/]+)\.py\)", row)
        names = re.findall(r"`(\w+(?:\.\w+)?)`", row.rpartition(" | ")[2])
        if not modules and "Eq" not in row and "ection" not in row:
            continue
        owners = [importlib.import_module(f"prosam_jax.{x.replace('/', '.')}") for x in modules]
        owners.append(importlib.import_module("prosam_jax.equations"))
        for name in names:
            if re.search(r"\.py$", name):
                continue
            owner, _, member = name.partition(".")
            held = [getattr(x, owner) for x in owners if hasattr(x, owner)]
            assert held, f"{name} in: {row}"
            assert not member or hasattr(held[0], member), name
            seen.add(name)
    assert {"mask_loss", "draw_noise", "reparameterise", "monte_carlo"} <= seen


def test_the_tree_has_every_room_and_no_other():
    page = PAGES.get("docs/architecture.md")
    if page is None:
        pytest.skip("docs/architecture.md is not written yet")
    tree = re.search(r"(?ms)^```\n(.*?)^```", page)[1]
    folders, named = {}, set()
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        entry, _, rest = line.strip().partition("  ")
        parent = folders.get(indent, ROOT)
        for name in entry.split(" "):
            assert (parent / name).exists(), f"{name} in: {line}"
            folders[indent + 2] = parent / name
            named.add((parent / name).resolve())
        # Others in the same place, named beside it.
        named |= {(parent / name).resolve() for name in re.findall(r"\b\w+\.py\b", rest)}
    package = ROOT / "prosam_jax"
    rooms = {x for x in package.iterdir() if not x.name.startswith("_") and x.suffix != ".typed"}
    assert rooms <= named


def _python_blocks(page):
    return re.findall(r"(?ms)^```python\n(.+?)^```", PAGES[page])


@pytest.mark.slow
def test_the_readmes_python_runs(tmp_path, monkeypatch):
    """Its blocks, one after the other, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    blocks, names = _python_blocks("README.md"), {}
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_names_that_python_blocks_import_exist(page):
    for block in _python_blocks(page):
        tree = ast.parse(block)
        imports = [x for x in ast.walk(tree) if isinstance(x, ast.Import | ast.ImportFrom)]
        names = {}
        exec(compile(ast.Module(imports, []), page, "exec"), names)
        called = [x.func for x in ast.walk(tree) if isinstance(x, ast.Call)]
        for function in called:  # such as Segmenter.from_pretrained
            if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
                owner = names.get(function.value.id)
                assert owner is None or hasattr(owner, function.attr), ast.unparse(function)


@pytest.mark.slow
def test_importing_the_run_time_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['tensorflow'] = None\n"
        "import prosam_jax.training.loop, prosam_jax.evaluation.evaluate, prosam_jax.cli"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
