"""requirements.txt and pyproject.toml say the same, and the paste-able lines of the README are those that CI runs."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_requirements_are_the_extras_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {*project["dependencies"], *extras["train"], *extras["dev"]}
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    listed = {line.replace('"', "'") for line in lines if line}
    assert listed == declared


def test_readme_commands_are_run_by_ci():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    for command in ("python -m pytest -n auto --dist loadfile", "python train.py --config=configs/supershapes_tiny.py"):
        assert command in readme, command
        assert command in ci, command


def test_readme_example_of_the_loss_runs():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    names = {}
    exec(code, names)
    # By hand, all scores 1/2 (log 2 each): row 0 (class 0) spares tail class 2 and pays for itself and class 1; row 1
    # (class 1) pays for itself alone; row 2 (background) pays for all three; row 3 counts nowhere.
    assert abs(float(names["loss"]) - (2 + 1 + 3) * 0.6931472 / 3) < 1e-5
    assert not names["gradient"][3].any() and not names["gradient"][1, [0, 2]].any()
