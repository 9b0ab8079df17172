"""Every example runs, and what docs/porting.md shows is text of the examples."""

import importlib
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from configs import base
from eql_jax.class_losses import ClassFrequencies
from eql_jax.models.box_head import configured_loss
from eql_jax.training import config as config_lib

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem != "made_up_data")
PAGE = (ROOT / "docs" / "porting.md").read_text()
NEEDS = {"porting_pytorch": "torch"}


def blocks(language):
    """The page's blocks of a language, each without its common indentation."""
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def file_with(text):
    """The example that has these lines, in any indentation."""
    for path in EXAMPLES:
        for spaces in range(0, 13, 4):
            if "\n" + textwrap.indent(text, " " * spaces) in "\n" + path.read_text():
                return path.stem
    return None


@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES])
def test_runs(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    importlib.import_module(f"examples.{name}").main()  # its own assertions are the test


def test_runs_as_a_script_from_anywhere(tmp_path):
    script = ROOT / "examples" / "porting_torch_style.py"
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "objects right" in done.stdout


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_code_of_the_page_is_of_an_example(number):
    text = blocks("python")[number]
    assert file_with(text), f"no example has these lines:\n{text}"


@pytest.mark.parametrize("number", range(len(blocks("diff"))))
def test_changes_of_the_page_are_those_between_two_examples(number):
    lines = blocks("diff")[number].splitlines(keepends=True)
    assert all(line[0] in " +-" for line in lines)
    before = "".join(line[1:] for line in lines if line[0] != "+")
    after = "".join(line[1:] for line in lines if line[0] != "-")
    assert file_with(textwrap.dedent(before)) == "porting_nnx_before", before
    assert file_with(textwrap.dedent(after)) == "porting_nnx", after


def test_commands_of_the_page_are_configs_that_load():
    commands = [shlex.split(line) for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    commands = [command for command in commands if "train.py" in command]
    assert len(commands) >= 2
    for command in commands:
        config_file = next(word.removeprefix("--config=") for word in command if word.startswith("--config="))
        overrides = [word for word in command if word.startswith("--config.")]
        config = config_lib.load_config(str(ROOT / config_file), overrides, base=base.get_config())
        loss = configured_loss(config.model, ClassFrequencies(3, image_counts=[9, 2, 1]))
        assert type(loss).__module__ == "examples.own_loss"


def test_every_example_is_on_the_page():
    assert all(f"examples/{path.name}" in PAGE for path in EXAMPLES)
    links = re.findall(r"\]\(\.\./([^)]+)\)", PAGE)
    assert len(links) >= len(EXAMPLES) and all((ROOT / path).exists() for path in links)
