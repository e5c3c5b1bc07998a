import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from finemoe.paths import ROOT

pytestmark = pytest.mark.timeout(300)  # Snakemake plans everything

BIN = Path(sys.executable).parent


def embedded(page: str, variable: str):
    """The value of a JavaScript variable that Snakemake writes into its report, in a script of that name."""
    script = page.split(f'<script id="{variable}">', 1)[1]
    return json.JSONDecoder().raw_decode(script.split(" = ", 1)[1])[0]


def snakemake(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", "--nolock", "--cores", "2", *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_lint_and_format():
    lint = snakemake("--lint")
    assert lint.returncode == 0, lint.stdout
    command = [BIN / "snakefmt", "--check", "Snakefile", *sorted((ROOT / "rules").glob("*.smk"))]
    formatted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert formatted.returncode == 0, formatted.stderr


def test_smoke_covers_every_rule_of_the_default_target():
    def rules(*arguments: str) -> set[str]:
        done = snakemake("--dry-run", "--forceall", "--quiet", "host", *arguments)
        assert done.returncode == 0, done.stdout
        table = done.stdout.split("-------\n", 1)[1].split("\n\n", 1)[0]
        return {line.split()[0] for line in table.splitlines()} - {"total"}

    full = rules()
    assert rules("--configfile", "config/smoke.yaml") == full
    assert {"profile_models", "build_expert_maps", "run_offloading", "claims", "t1", "f4"} <= full
    assert "train_miniature" not in full


def test_a_grid_of_cells_is_planned_for_a_slurm_cluster():
    """The profile and the grid's configuration parse, and every cell is a job of its own."""
    done = snakemake("--workflow-profile", "profiles/slurm", "--configfile", "config/grid.yaml", "--dry-run", "--quiet", "host")
    assert done.returncode == 0, done.stdout
    jobs = dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)
    assert jobs["simulate_testbed"] == str(6 * 3 * 2)  # testbeds, models, datasets
    # A run that is not dry needs to know how many cores a rule may ask for that must run alone.
    assert yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())["cores"] >= 1


def test_a_typo_in_the_configuration_is_one_clear_line(tmp_path):
    (tmp_path / "typo.yaml").write_text("polices: [finemoe]\n")
    done = snakemake("--dry-run", "--configfile", str(tmp_path / "typo.yaml"))
    assert done.returncode == 1
    assert "config: unknown key 'polices'; did you mean 'policies'?" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_missing_model_names_the_file():
    # Results of their own: where results exist already, Snakemake does not ask for what they were made from.
    folders = ["miniatures=results/nowhere", "results=results/never", "figures=figures/never"]
    done = snakemake("--dry-run", "--forceall", "--config", *folders)
    assert done.returncode == 1
    assert "results/nowhere/mixtral-mini" in done.stdout
    assert "Traceback" not in done.stdout


def test_every_figure_can_be_reached_in_the_report(tmp_path):
    """The report's menu has one row for each set of labels: figures that share theirs would hide each other."""
    here = os.path.relpath(tmp_path, ROOT)  # stand-ins for what a run makes: the report asks only whether they are there
    folders = ["--config", f"results={here}/results", f"figures={here}/figures"]
    planned = snakemake("--dry-run", "--forceall", "--workflow-profile", "none", *folders)
    assert planned.returncode == 0, planned.stdout
    outputs = [line.removeprefix("    output: ") for line in planned.stdout.splitlines() if line.startswith("    output: ")]
    for path in (ROOT / name for names in outputs for name in names.split(", ")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a stand-in")
    done = snakemake("--report", str(tmp_path / "report.html"), *folders)
    assert done.returncode == 0, done.stdout
    page = (tmp_path / "report.html").read_text(encoding="utf-8")

    shown = embedded(page, "results")
    assert {path for path in shown if path.endswith(".png")} == {
        f"{here}/{path.relative_to(tmp_path)}" for path in tmp_path.glob("figures/**/*.png")
    }
    keys = [
        (category, subcategory, *sorted(shown[path]["labels"].items()))
        for category, subcategories in embedded(page, "categories").items()
        for subcategory, paths in subcategories.items()
        for path in paths
    ]
    assert len(keys) == len(set(keys)) == len(shown)
    assert f"app.showResultInfo('{here}/figures/claims.html')" in page  # the introduction's link
