"""A full-width R50-FPN with 1203 classes into a workdir, through an image and back, within time and memory."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_full_width_model_within_its_limits():
    """The benchmark's limits are 60 s and 4 GiB; here the image is smaller, and the other tests take their time."""
    words = [sys.executable, str(ROOT / "benchmarks" / "convert.py"), "--image_size=256", "--limit_seconds=120"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "307 tensors" in done.stdout and "1203 classes" in done.stdout
