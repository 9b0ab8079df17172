"""The files of deploy/ parse, and name flags and configs that exist. No cluster is here to run them."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "deploy").iterdir())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_file_parses_and_explains_itself(file):
    text = file.read_text()
    if file.suffix == ".yaml":
        lines = text.splitlines()
        job = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]
        (command,) = job["template"]["spec"]["containers"][0]["args"]
        assert f"--num_processes={job['parallelism']} " in command and job["completions"] == job["parallelism"]
        subprocess.run(["bash", "-n", "-c", command], check=True)
    else:
        subprocess.run(["bash", "-n", str(file)], check=True)
        assert text.startswith("#!/usr/bin/env bash\n")
        lines = text.splitlines()[1:]
    assert all(line.startswith("# ") for line in lines[:3])
    assert not lines[3].startswith("# ")


def test_flags_and_configs_exist():
    known = set(re.findall(r'"--(\w+)"', (ROOT / "train.py").read_text()))
    known |= set(re.findall(r'"--(\w+)"', (ROOT / "eql_jax" / "training" / "hosts.py").read_text()))
    for file in FILES:
        text = file.read_text()
        for config in re.findall(r"configs/\w+\.py", text):
            assert (ROOT / config).is_file(), (file.name, config)
        text = text.replace("\n" if file.suffix == ".yaml" else "\\\n", " ")
        used = re.findall(r"train\.py(.*)", text)
        for flag in (flag for words in used for flag in re.findall(r" --(\w+)", words)):
            assert flag in known, (file.name, flag)
