"""The project as a whole: everything imports, recipes build, the README's words hold."""

import importlib
import pathlib
import pkgutil
import re
import subprocess
import sys

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from PIL import Image

import prosam_jax
from prosam_jax.config import Config

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_module_imports_and_says_what_it_is():
    for info in pkgutil.walk_packages(prosam_jax.__path__, "prosam_jax."):
        module = importlib.import_module(info.name)
        if not info.ispkg:
            assert module.__doc__, info.name


def test_shapes_and_types_are_checked_in_tests():
    from prosam_jax import resize

    with pytest.raises(TypeCheckError):
        resize.nearest(np.zeros((3, 5)), (2, 2))


@pytest.mark.parametrize("recipe", sorted(p.stem for p in (ROOT / "configs").glob("[a-z]*.py")))
def test_every_recipe_is_valid(recipe):
    module = importlib.import_module(f"configs.{recipe}")
    assert "python train.py" in module.__doc__
    Config.from_dict(module.get_config())


def test_files_named_in_the_readme_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    files = [link for link in links if "://" not in link]
    assert len(files) > 10
    for file in files:
        assert (ROOT / file).exists(), file


def test_functions_named_in_the_readme_exist():
    from prosam_jax import equations, model
    from prosam_jax.sam.model import Sam

    table = README.partition("## Equations")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if "equations.py`" in line or "`equations" in line]
    names = {n for row in rows for n in re.findall(r"`(\w+)`", row.rpartition("| ")[0])}
    assert {"mask_loss", "draw_noise", "reparameterise", "monte_carlo"} <= names
    for name in names - {"ReferencePromptEncoder"}:
        assert hasattr(equations, name), name
    for dotted in re.findall(r"`(Sam|ProSAM)\.(\w+)`", table):
        owner = {"Sam": Sam, "ProSAM": model.ProSAM}[dotted[0]]
        assert hasattr(owner, dotted[1]) or dotted[1] == "prompt_encoder", dotted


def test_settings_named_in_the_readme_exist():
    from prosam_jax.config import check_setting

    groups = "data|sam|backbone|prompt|distribution|train|eval|cache"
    names = re.findall(rf"(?:--config\.|`)((?:{groups})\.\w+)", README)
    assert len(names) > 10
    for name in names:
        check_setting(name)


def _run_example(number, replacements=()):
    code = re.findall(r"```python\n(.+?)```", README, re.DOTALL)[number]
    for old, new in replacements:
        assert old in code
        code = code.replace(old, new)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_the_readmes_drops_are_drawn(tmp_path, monkeypatch):
    from prosam_jax import images

    monkeypatch.chdir(tmp_path)
    _run_example(0)
    assert len(list((tmp_path / "drops").glob("*.png"))) == 8
    assert images.read_mask("drop_mask.png", "mask").any()


@pytest.mark.slow
def test_the_readmes_example_runs():
    names = _run_example(2)
    assert names["posterior"].mean.shape == (2, 50, 256)
    assert names["logits"].shape == (2, 128, 128)


@pytest.mark.slow
def test_the_readmes_sam_example_runs(tmp_path):
    from prosam_jax.config import SAMConfig
    from prosam_jax.sam.model import Sam
    from prosam_jax.weights import files

    sam = files.random(lambda rngs: Sam(SAMConfig.tiny(), rngs=rngs), 0)
    file, photo = tmp_path / "tiny.safetensors", tmp_path / "photo.jpg"
    files.save(file, files.leaves(sam), {"kind": "sam", "architecture": "tiny"})
    Image.new("RGB", (61, 47)).save(photo)
    files = [("weights/sam_vit_h.safetensors", str(file)), ("photo.jpg", str(photo))]
    names = _run_example(3, files)
    assert names["masks"].shape == (3, 47, 61)
    assert names["iou"].shape == (3,)


@pytest.mark.slow
def test_the_readmes_segmenter_example_runs(tmp_path, monkeypatch):
    from small import prompt_encoder_file

    model = prompt_encoder_file(tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("cat1", "cat2", "a", "b", "c")):
        Image.effect_noise((60 + i, 50), 99).convert("RGB").save(f"{name}.jpg")
    Image.new("L", (60, 50), 255).save("cat1.png")
    names = _run_example(1, [("prosam-shapes", str(model))])
    assert names["found"].masks.shape == (1, 50, 64)


@pytest.mark.slow
def test_importing_the_run_time_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['tensorflow'] = None\n"
        "import prosam_jax.training.loop, prosam_jax.training.score, prosam_jax.cli"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
