"""The peers, and an environment for each: they want releases of the same packages that do not go together."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple, Optional

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
DEFAULT_FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm_entropy" / "peers"
NOT_INSTALLED = "why-not.txt"
"""In an environment's folder: what pip said last, where it failed."""


class Peer(NamedTuple):
    """A way to the same numbers."""

    label: str
    """What the table calls it; its packages' releases come behind."""
    module: str
    """Of `benchmarks.peers`; also the name of its environment."""
    requirements: tuple[str, ...]
    """What pip installs; nothing: it runs in the environment of this program."""
    packages: tuple[str, ...]
    """Whose releases the table names."""
    reads: str
    """What it computes at every layer, beside the entropy."""
    every: int = 8
    """It reads every so many sentences: it takes longer, and its time is in proportion."""


ATTENTION = "margin, surprisal, top 5, attention entropy"
PEERS = (
    Peer("the usual script", "usual_script", (), (), "all six metrics, top 5", every=32),
    Peer("transformers, batched", "hugging_face", (), ("transformers",), ATTENTION),
    Peer(
        "TransformerLens",
        "transformer_lens",
        ("transformer-lens>=4.3",),
        ("transformer-lens",),
        "top 5, attention entropy",
    ),
    Peer("tuned-lens", "tuned_lens", ("tuned-lens",), ("tuned-lens", "transformers"), "all probabilities", every=32),
    # nnterp 1.3 asks for nnsight 0.6 or newer, and cannot be imported beside 0.8
    Peer("nnterp", "nnterp", ("nnterp>=1.3", "nnsight<0.8"), ("nnterp", "nnsight"), "top 5"),
)


def set_up(folder: Path) -> None:
    """Make every environment that is not there; where one cannot be made, keep the reason.

    Args:
        folder: Of the environments.
    """
    for peer in PEERS:
        place = folder / peer.module
        if not peer.requirements or python_of(peer, folder) is not None:
            continue
        print(f"{place}: installing {' '.join(peer.requirements)}", flush=True)
        venv.create(place, clear=True, with_pip=True)
        pip = [str(place / "bin/python"), "-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS)]
        done = subprocess.run([*pip, *peer.requirements], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
            print(done.stderr, file=sys.stderr)
            (place / NOT_INSTALLED).write_text(errors[-1], encoding="utf-8")
        else:
            (place / "ready").touch()


def python_of(peer: Peer, folder: Path) -> Optional[str]:
    """Return the interpreter that runs a peer; None where its environment has not been made.

    Args:
        peer: Which one.
        folder: Of the environments.
    """
    if not peer.requirements:
        return sys.executable
    place = folder / peer.module
    return str(place / "bin/python") if (place / "ready").exists() else None


def why_not(peer: Peer, folder: Path) -> str:
    """Return why a peer has no environment.

    Args:
        peer: Which one.
        folder: Of the environments.
    """
    reason = folder / peer.module / NOT_INSTALLED
    return reason.read_text(encoding="utf-8") if reason.exists() else "not set up: --setup makes its environment"


def releases(peer: Peer, python: str) -> str:
    """Return the peer's packages and their releases, as its environment has them.

    Args:
        peer: Which one.
        python: Its interpreter.
    """
    program = (
        "import sys; from importlib.metadata import version; print(*(version(n) for n in sys.argv[1:]), sep='\\n')"
    )
    done = subprocess.run([python, "-c", program, *peer.packages], stdout=subprocess.PIPE, text=True, check=True)
    return ", ".join(f"{name} {version}" for name, version in zip(peer.packages, done.stdout.split(), strict=True))
