# Shared by the rules: the table of notebooks, the values of the names in it, and the files, logs and parameters of an entry.
import json
from pathlib import Path

from finemoe.artifact.external.manifest import read_manifest
from finemoe.artifact.external.needed import SHIPPED_TABLES, prompt_sets
from finemoe.artifact.external.store import ACCEPTED, MIRROR, mirror_of
from finemoe.artifact.pipeline.filling import Filling, parameter_names
from finemoe.artifact.pipeline.notebooks import notebook_named
from finemoe.artifact.pipeline.sources import sources_of
from finemoe.artifact.pipeline.table import read_table
from finemoe.artifact.pipeline.warm_parent import ADDRESS

RUN = (
    "{params.environment} python -m finemoe.artifact.pipeline notebook {input.notebook} --output {params.executed} --log {log.text}"
    " --costs {log.costs} --parameters-json {params.values:q}"
)
TABLE = read_table()
RESULTS, FIGURES, MINIATURES = config["results"], config["figures"], config["miniatures"]
MODELS, DATASETS = config["models"], config["datasets"]
TESTBEDS = [config["testbed"], config["high_end_testbed"], *config["further_testbeds"]]
CLAIMED = [name for name, entry in TABLE.items() if entry.claim]
# Tables of the measured machines, and of this machine if a configuration names models to measure on it.
HERE = f"{RESULTS}/measured/here"
SHIPPED = sorted(str(path.parent) for path in Path("data/measured").glob("[!.]*/machine.json"))
MACHINES = SHIPPED + ([HERE] if config["gpu_models"] else [])
MEASURED = (
    [f"{machine}/machine.json" for machine in MACHINES]
    + sorted(str(path) for machine in SHIPPED for path in Path(machine).glob("[!.]*.csv"))
    + sorted(str(path) for path in Path("data/measured").glob("predictions-before-*.csv"))
)
# The values of the names in braces in notebooks/table.yaml.
FILLING = Filling(
    config | {"dataset_sources": prompt_sets(config)},
    {"results": RESULTS, "figures": FIGURES, "miniatures": MINIATURES},
    {
        "ARRIVALS": [config["arrivals_file"]] if config["arrivals_file"] else [],
        "CLAIMED": CLAIMED,
        "DATASET": DATASETS[0],
        "DATASETS": DATASETS,
        "FIRST_TWO_MODELS": MODELS[:2],
        "HIGH_END_TESTBED": config["high_end_testbed"],
        "LAST_DATASET": DATASETS[-1],
        "MACHINES": MACHINES,
        "MEASURED": MEASURED,
        "MODEL": MODELS[0],
        "MODEL_FILES": ["config.json", "model.safetensors", "tokenizer.json"],
        "MODELS": MODELS,
        "TESTBED": config["testbed"],
    },
    made={
        path: f"{RESULTS}/{path.removeprefix('data/')}"
        for name in config["routing_tables"]
        for path in SHIPPED_TABLES[name]
    },
)


EVERY = {"model": MODELS, "dataset": DATASETS, "testbed": TESTBEDS}  # the allowed values of wildcards


def inputs_of(entry):
    """A notebook's input files by name: the notebook, the code that it reaches, and the inputs in the table."""
    found = {
        "notebook": str(notebook_named(entry.notebook).relative_to(workflow.basedir)),
        "code": sources_of(entry.notebook, policies=policies_of(entry)),
    }
    if entry.figure:
        found["style"] = "finemoe/artifact/finemoe.mplstyle"
    if "column" in parameter_names(entry.notebook):
        found["prompts"] = lambda wildcards: FILLING.dataset_files(wildcards.get("dataset", DATASETS[0]))
    return found | {name: FILLING.paths(pattern) for name, pattern in entry.inputs.items()}


def policies_of(entry):
    """The policies from the configuration that a notebook runs."""
    return config["policies"] if "policies" in parameter_names(entry.notebook) else []


def outputs_of(entry):
    """A notebook's output files by name, marked for Snakemake: tables must not be empty, and pictures appear in the report."""
    found = FILLING.outputs(entry)
    for name, path in found.items():
        if path.endswith(".csv"):
            found[name] = ensure(path, non_empty=True)
    if entry.figure:
        found["png"] = in_report(entry, found["png"])
    if entry.name == "claims":
        labels = {"table": "the paper's claims"}
        found["html"] = report(
            found["html"], caption="notebooks/captions/claims.rst", category="Claims", labels=labels
        )
    return found


def in_report(entry, picture):
    """A figure's picture in `snakemake --report`, which merges rows with equal labels; the stem keeps them distinct."""
    id = "H" if entry.name == "headline" else entry.name.capitalize()
    caption = f"notebooks/captions/{Path(entry.stem).parts[0]}.rst"
    labels = {"artefact": entry.figure, "claim": id if entry.claim else "-", "figure": entry.stem}
    return report(picture, caption=caption, category="Figures", labels=labels)


def logs_of(entry):
    """The log files. The executed notebook is a log because Snakemake deletes the outputs of a failed job, including its traceback."""
    found = {"text": f"{RESULTS}/logs/{entry.job}.txt", "costs": f"{RESULTS}/costs/{entry.job}.tsv"}
    return found if entry.executed else found | {"notebook": f"{RESULTS}/notebooks/{entry.job}.ipynb"}


def environment_of(entry):
    """Environment variables that precede a notebook's command in the shell.

    Snakemake sets OMP_NUM_THREADS and similar variables to a rule's threads. A miniature's layers are too small to share: two threads are
    no faster than one on an idle machine, and tens of times slower on a busy one, because each parallel loop waits for both. A notebook
    that measures wall-clock time runs in a separate process, not in a fork that shares its parent's memory.
    """
    return f"{ADDRESS}= OMP_NUM_THREADS=1 MKL_NUM_THREADS=1" if entry.alone else ""


def executed_of(entry):
    """The path of one job's executed notebook."""
    return lambda wildcards: f"{RESULTS}/notebooks/{entry.job}.ipynb".format(**wildcards)


def values_of(entry):
    """The parameters of one job's notebook, as JSON."""

    def values(wildcards, input, output):
        figure = {"figure": output.pdf.removesuffix(".pdf")} if entry.figure else {}
        return json.dumps(
            FILLING.parameters(entry, dict(wildcards), dict(input.items()), dict(output.items()) | figure)
        )

    return values


EXTERNAL = read_manifest()
# In the environment and not among the parameters: fetched data do not change with the mirror or with what else is accepted.
os.environ[ACCEPTED] = " ".join(config["accept_licences"])
os.environ[MIRROR] = mirror_of(config["mirror"])


def in_folder(file):
    """The path of a file in the folder of external data."""
    return f"{config['external']}/{file}"


def above(file):
    """The folder of external data, from the path of a rule's output in it."""
    return lambda wildcards, output: output[0][: -len(file) - 1]


def can_be_had(entry):
    """Whether an entry's licence is accepted, and some server has it."""
    return entry.licence.name in config["accept_licences"] and (entry.url or entry.hub or os.environ[MIRROR])
