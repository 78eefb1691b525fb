"""Check that a comparative run left the files that it should, whole and readable.

python .ci/check_outputs.py configs/quickstart.yaml analysis_outputs/run_...
"""

import csv
import json
import sys
from pathlib import Path

import yaml

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def expected_files(models: list[str], metrics: list[str]) -> set[str]:
    """Return the paths that a comparative run has to leave, relative to its folder."""
    paths = {"config.yaml", "run.json", "run.log"}
    paths |= {f"standard/plots/models_{metric}.png" for metric in metrics}
    for model in models:
        for condition in ("standard", "control"):
            for name in (*metrics, "token_probabilities"):
                paths |= {f"{condition}/data/{model}_{name}.csv", f"{condition}/plots/{model}_{name}.png"}
            paths |= {f"{condition}/data/{model}.parquet", f"{condition}/predictions/{model}_predictions.csv"}
        for metric in metrics:
            paths |= {
                f"comparative/data/{model}_{metric}_comparative.csv",
                f"comparative/plots/{model}_{metric}_comparison.png",
                f"comparative/plots/{model}_{metric}_differences.png",
            }
        paths |= {
            f"comparative/plots/{model}_layer_impact.png",
            f"comparative/predictions/{model}_comparative_predictions.csv",
        }
    return paths


def problem_of(path: Path) -> str | None:
    """Return what is wrong with one file, if anything."""
    content = path.read_bytes()
    if not content:
        return "is empty"
    if path.suffix == ".png" and not content.startswith(PNG_SIGNATURE):
        return "is no PNG"
    if path.suffix == ".json":
        try:
            json.loads(content)
        except ValueError as error:
            return f"is no JSON: {error}"
    if path.suffix == ".csv":
        rows = list(csv.reader(content.decode("utf-8").splitlines(keepends=True)))
        if len(rows) < 2 or any(len(row) != len(rows[0]) for row in rows):
            return "is no table with a header and rows"
    return None


def main(config: Path, run_dir: Path) -> int:
    """Print what is missing or broken, and the counts; return the exit status."""
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    num_sentences = settings["analysis"]["num_sentences"]
    expected = expected_files(list(settings["models"]), settings["analysis"]["metrics"])
    found = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}
    problems = [f"{name} is missing" for name in sorted(expected - found)]
    problems += [f"{name} {problem}" for name in sorted(found) if (problem := problem_of(run_dir / name))]
    problems += [f"{name} is a file that was left half-written" for name in sorted(found) if "tmp" in Path(name).suffix]

    for name in sorted(expected & found):
        if name.startswith(("standard/data", "control/data")) and name.endswith(".csv") and "token_prob" not in name:
            with (run_dir / name).open(encoding="utf-8", newline="") as file:
                num_rows = sum(1 for _ in csv.DictReader(file))
            if num_rows != num_sentences:
                problems.append(f"{name} holds {num_rows} rows, not {num_sentences}")

    for problem in problems:
        print(problem)
    counts = {suffix: sum(name.endswith(suffix) for name in found) for suffix in (".csv", ".png", ".parquet")}
    print(
        f"{run_dir}: {counts['.csv']} csv, {counts['.png']} png, {counts['.parquet']} parquet; {len(problems)} problems"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
