"""Check that a comparative run left the files that it should, whole and readable.

python .ci/check_outputs.py configs/quickstart.yaml analysis_outputs/run_...
"""

import csv
import json
import sys
from pathlib import Path

from llm_entropy.settings import Settings
from llm_entropy.settings.configuration import read_config

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def expected_files(settings: Settings) -> set[str]:
    """Return the paths that a comparative run has to leave, relative to its folder."""
    metrics, conditions = settings.analysis.metrics, settings.analysis.run_conditions
    shown = [condition for condition in conditions if condition.keeps_tokens]
    paths = {"config.yaml", "run.json", "run.log", "report.html"}
    paths |= {f"standard/plots/models_{metric}.png" for metric in metrics}
    for model in settings.models:
        for condition in shown:
            folder = condition.folder
            for name in (*metrics, "token_probabilities"):
                paths |= {f"{folder}/data/{model}_{name}.csv", f"{folder}/plots/{model}_{name}.png"}
            paths |= {f"{folder}/data/{model}.parquet", f"{folder}/predictions/{model}_predictions.csv"}
        if settings.analysis.lens_tokens:
            acting = [condition for condition in shown[1:] if condition.steering and condition.steering.strength]
            folders = [shown[0].folder, *(condition.comparison_folder for condition in acting)]
            paths |= {f"{folder}/plots/{model}_lens_grid.png" for folder in folders}
        for condition in shown[1:]:
            folder = condition.comparison_folder
            for metric in metrics:
                paths |= {
                    f"{folder}/data/{model}_{metric}_comparative.csv",
                    f"{folder}/plots/{model}_{metric}_comparison.png",
                    f"{folder}/plots/{model}_{metric}_differences.png",
                }
            paths |= {
                f"{folder}/plots/{model}_layer_impact.png",
                f"{folder}/predictions/{model}_comparative_predictions.csv",
            }
        names = ["data/{}_summary.csv", "data/{}_dose.csv", "data/{}_placebos.parquet", "plots/{}_summary.png"]
        names += [f"plots/{{}}_{metric}_dose_response.png" for metric in metrics]
        paths |= {f"comparative/{name.format(model)}" for name in names}
    silent = {f"{own}/plots/" for one in shown if not one.has_plots for own in (one.folder, one.comparison_folder)}
    return {path for path in paths if not path.startswith(tuple(silent))}


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
    settings = read_config(config)
    num_sentences = settings.analysis.num_sentences
    expected = expected_files(settings)
    found = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}
    problems = [f"{name} is missing" for name in sorted(expected - found)]
    problems += [f"{name} {problem}" for name in sorted(found) if (problem := problem_of(run_dir / name))]
    problems += [f"{name} is a file that was left half-written" for name in sorted(found) if "tmp" in Path(name).suffix]

    for name in sorted(expected & found):
        is_of_sentences = name.startswith(("standard/data/", "control/")) and "/data/" in name
        if is_of_sentences and name.endswith(".csv") and "token_prob" not in name:
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
