"""`make showcase`: a real model, from pairs of sentences to a verdict and to texts, in three commands.

About five minutes on two cores, the first time with a download of 91 MiB. The commands are printed as they are typed.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from tools.showcase.fetch import NotFetched, fetch_model

HERE = Path(__file__).parent
STEPS = (("extract", "extract.yaml"), ("predict", "predict.yaml"), ("predict", "generate.yaml"))


def main() -> int:
    """Fetch the model and run the three steps; return the exit status of the first that fails, or 0."""
    try:
        fetch_model()
    except NotFetched as reason:
        print(f"showcase: {reason}", file=sys.stderr)
        return 1
    for command, config in STEPS:
        words = [command, "--config", str((HERE / config).relative_to(Path.cwd()))]
        print(f"\n$ llm-entropy {shlex.join(words)}", flush=True)
        done = subprocess.run([sys.executable, "-m", "llm_entropy", *words], check=False)
        if done.returncode:
            return done.returncode
    print("\nOpen analysis_outputs/showcase/report.html, and what the model writes:")
    print("analysis_outputs/showcase_texts/comparative/predictions/smollm2_generations.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
