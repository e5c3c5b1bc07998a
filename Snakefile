# Every figure and table of the paper that this project regenerates: `snakemake --cores all`.
# One rule per notebook, both of the same name; the logic is in the package, the settings are in config/.
import json
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from finemoe.errors import FinemoeError
from finemoe.artifact.pipeline.config import check
from finemoe.artifact.pipeline.sources import sources_of
from finemoe.artifact.pipeline.warm_parent import ADDRESS, Nursery

min_version("9.5")


# Rules run the Python that runs Snakemake and this checkout's package, whether or not either is activated or installed.
for variable, first in (("PATH", Path(sys.executable).parent), ("PYTHONPATH", workflow.basedir)):
    os.environ[variable] = os.pathsep.join([str(first), os.environ.get(variable, "")]).rstrip(os.pathsep)


workdir: workflow.basedir


report: "notebooks/captions/report.rst"


configfile: "config/default.yaml"


try:
    check(config)
except FinemoeError as error:
    raise WorkflowError(str(error)) from None

RESULTS, FIGURES, MINIATURES = config["results"], config["figures"], config["miniatures"]
MODELS, DATASETS = config["models"], config["datasets"]
# Figures drawn from traces: the paper's name for each, and the settings its notebook takes.
TRACE_FIGURES = {
    "f3a": ("Fig. 3a", []),
    "f3b": ("Fig. 3b", ["seed"]),
    "f3c": ("Fig. 3c", ["num_iterations", "seed"]),
    "f4": ("Fig. 4", ["expert_memory", "store_capacity", "seed"]),
    "f8": ("Fig. 8", ["sentence_model", "dataset_sources", "seed"]),
    "f9": ("Fig. 9", ["sentence_model", "dataset_sources", "seed"]),
    "f14a": ("Fig. 14a", ["expert_memory", "prefetch_distances", "store_capacity", "seed"]),
    "f14b": ("Fig. 14b", ["expert_memory", "prefetch_distances", "store_capacity", "seed"]),
    "f15": ("Fig. 15", ["testbed", "expert_memory", "max_distance", "store_capacity", "seed"]),
    "f16a": ("Fig. 16a", ["store_capacities", "prefetch_distances", "seed"]),
}
# Figures drawn from the systems on a testbed.
TESTBED_FIGURES = {
    "f1b": ("Fig. 1b", ["expert_memory", "store_capacity", "seed"]),
    "f10": ("Fig. 10", ["expert_memory", "seed"]),
    "f12": ("Fig. 12", ["seed"]),
    "f13": ("Fig. 13", ["expert_memory", "seed"]),
    "headline": ("headline", ["expert_memory", "seed"]),
}
CLAIMED = ["t1", *TRACE_FIGURES, *TESTBED_FIGURES, "f11", "f16b", "f17", "f18"]
MEASURED = ["engine_overhead_measured", "paced_link_measured", "validate_simulator_measured"]
TESTBEDS = [config["testbed"], config["high_end_testbed"], *config["further_testbeds"]]
# What the simulator reads beside traces: machines and the sizes of the published models.
DESCRIBED = [
    str(path)
    for pattern in ("hardware/*.yaml", "models/configs/*.json", "models/sizes.json")
    for path in sorted(Path("data").glob(pattern))
]
# Tables of machines that were measured, and of this one where a configuration names models to measure on it.
HERE = f"{RESULTS}/measured/here"
MACHINES = sorted(
    str(path.parent) for path in Path("data/measured").glob("*/machine.json") if path.parent.name[0] != "."
) + ([HERE] if config["gpu_models"] else [])
MEASURED_FILES = (
    [f"{machine}/machine.json" for machine in MACHINES]
    + sorted(
        str(path)
        for machine in MACHINES
        if machine != HERE
        for path in Path(machine).glob("*.csv")
        if path.name[0] != "."
    )
    + sorted(str(path) for path in Path("data/measured").glob("predictions-before-*.csv"))
)
# Advice on real traces, as tables.
ADVISED = [
    str(path)
    for path in sorted(Path("data/reference/advice").glob("*"))
    if path.suffix in (".csv", ".json") and path.name[0] != "."
]
RUN = (
    "python -m finemoe.artifact.pipeline notebook {input.notebook} --output {log.notebook} --log {log.text}"
    " --costs {log.costs}"
    " --parameters-json {params.values:q}"
)
# Snakemake sets OMP_NUM_THREADS and its like to a rule's threads. A miniature's layers are too small to share: two threads are no faster than
# one when the machine is idle, and tens of times slower when it is not (each parallel loop waits for both).
ONE_THREAD = "OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 "
# What measures wall-clock time is a process of its own, not a fork of one that shares its memory.
ALONE = f"{ADDRESS}= {ONE_THREAD}"
ENVIRONMENT = "environment.yml"  # made by Snakemake itself only under `--software-deployment-method conda`
STYLE = "finemoe/artifact/finemoe.mplstyle"


wildcard_constraints:
    model="|".join(MODELS),
    dataset="|".join(DATASETS),
    testbed="|".join(TESTBEDS),


def pairs(pattern):
    """One path for each model and dataset."""
    return expand(pattern, model=MODELS, dataset=DATASETS)


def figure_files(stem):
    return [f"{FIGURES}/{stem}.{suffix}" for suffix in ("pdf", "png", "csv")]


def simulated(testbed):
    """The tables of every system on a testbed, one for each model and dataset."""
    return pairs(f"{RESULTS}/simulated/{testbed}/{{model}}-{{dataset}}.csv")


def first_traces(models):
    """The traces of the first dataset, and of the last one."""
    return [
        expand(f"{RESULTS}/traces/{{model}}-{dataset}.trace", model=models)
        for dataset in (DATASETS[0], DATASETS[-1])
    ]


def claims_of(stem):
    """The rows of the claims table that a figure's notebook writes."""
    return ["H" if id == "headline" else id[0].upper() + id[1:] for id in CLAIMED if id == stem]


def in_report(stem, artefact):
    """The picture of a figure, shown by `snakemake --report`, where rows with the same labels would be one: its own name is among them."""
    return report(
        f"{FIGURES}/{stem}.png",
        caption=f"notebooks/captions/{Path(stem).parts[0]}.rst",
        category="Figures",
        labels={
            "artefact": artefact,
            "claim": ", ".join(claims_of(Path(stem).name)) or "-",
            "figure": stem,
        },
    )


def model_folder(wildcards):
    return [
        f"{MINIATURES}/{wildcards.model}/{name}"
        for name in ("config.json", "model.safetensors", "tokenizer.json")
    ]


def dataset_source(name):
    """Where a dataset's prompts come from: an embedded set of that name, or what `dataset_sources` says."""
    return {"dataset": name, "column": "prompt"} | config["dataset_sources"].get(name, {})


def prompts_file(wildcards):
    """The local file behind a dataset, so that editing it reruns what used it; none for a hub id."""
    source = dataset_source(wildcards.dataset)["dataset"]
    embedded = f"data/prompts/{source}.jsonl"
    return [path for path in (embedded, source) if Path(path).is_file()]


def figure_parameters(wildcards, input, output):
    """What a figure's notebook is told: the traces it reads, the stem it draws to, the claim it writes, its settings."""
    stem = output.pdf.removesuffix(".pdf")
    of_traces = {"prefetch_distances": [config["prefetch_distance"][m] for m in MODELS for _ in DATASETS]}
    settings = {name: (config | of_traces)[name] for name in TRACE_FIGURES[Path(stem).name][1]}
    return json.dumps({"traces": list(input.traces), "figure": stem, "claims": output.claims, **settings})


# Notebooks but those that measure are forks of one process, which has imported their libraries once for all.
nursery = Nursery()


onstart:
    if workflow.local_exec:
        # Snakemake 9.27 begins one more clock for every job that ends, each of which has it look at every file of every waiting job once
        # a second: a sixth of all processor time. They keep a limit of jobs a second, which only a cluster needs.
        workflow.scheduler.job_rate_limiter = None
    nursery.start()


onerror:
    nursery.stop()


onsuccess:
    nursery.stop()
    if not workflow.dryrun:
        print(
            f"Figures are in {FIGURES}/, the claims they bear on in {FIGURES}/claims.md.", file=sys.stderr
        )


rule all:
    default_target: True
    input:
        [
            figure_files(stem)
            for stem in [
                *CLAIMED,
                "disagreement",
                "finemoe_plus",
                "advise",
                "scale",
                "training",
                "quickstart",
                "gpu_measured",
                *MEASURED,
            ]
        ],
        f"{FIGURES}/claims.md",
        f"{FIGURES}/claims.csv",
        pairs(f"{RESULTS}/offloading/{{model}}-{{dataset}}.csv"),
        pairs(f"{FIGURES}/compare_systems/{{model}}-{{dataset}}.pdf"),
        f"{FIGURES}/compare_systems/gpt-oss-20b-mixed.pdf",
        f"{RESULTS}/notebooks/explore.ipynb",
        [simulated(testbed) for testbed in TESTBEDS],


rule profile_models:
    input:
        notebook="notebooks/stages/1_profile_models.ipynb",
        code=sources_of("profile_models"),
        model=model_folder,
        prompts=prompts_file,
    output:
        trace=f"{RESULTS}/traces/{{model}}-{{dataset}}.trace",
        table=ensure(f"{RESULTS}/profile/{{model}}-{{dataset}}.csv", non_empty=True),
        measured=f"{RESULTS}/profile/{{model}}-{{dataset}}_measured.csv",
    log:
        notebook=f"{RESULTS}/notebooks/profile_models/{{model}}-{{dataset}}.ipynb",
        text=f"{RESULTS}/logs/profile_models/{{model}}-{{dataset}}.txt",
        costs=f"{RESULTS}/costs/profile_models/{{model}}-{{dataset}}.tsv",
    conda:
        ENVIRONMENT
    params:
        values=lambda wildcards, output: json.dumps(
            {
                "model": f"{MINIATURES}/{wildcards.model}",
                "num_prompts": config["num_prompts"],
                "max_new_tokens": config["max_new_tokens"],
                "batch_size": config["batch_size"],
                "lookahead": config["lookahead"],
                **dataset_source(wildcards.dataset),
                "trace": output.trace,
                "table": output.table,
                "measured": output.measured,
            }
        ),
    shell:
        RUN


rule build_expert_maps:
    input:
        notebook="notebooks/stages/2_build_expert_maps.ipynb",
        code=sources_of("build_expert_maps"),
        trace=rules.profile_models.output.trace,
    output:
        store=f"{RESULTS}/stores/{{model}}-{{dataset}}.store",
        table=ensure(f"{RESULTS}/stores/{{model}}-{{dataset}}.csv", non_empty=True),
    log:
        notebook=f"{RESULTS}/notebooks/build_expert_maps/{{model}}-{{dataset}}.ipynb",
        text=f"{RESULTS}/logs/build_expert_maps/{{model}}-{{dataset}}.txt",
        costs=f"{RESULTS}/costs/build_expert_maps/{{model}}-{{dataset}}.tsv",
    conda:
        ENVIRONMENT
    params:
        values=lambda wildcards, input, output: json.dumps(
            {
                "trace": input.trace,
                "store_capacity": config["store_capacity"],
                "prefetch_distance": config["prefetch_distance"][wildcards.model],
                "store": output.store,
                "table": output.table,
            }
        ),
    shell:
        RUN


# Times inference, so nothing else may run beside it.
rule run_offloading:
    input:
        notebook="notebooks/stages/3_run_offloading.ipynb",
        code=sources_of("run_offloading"),
        model=model_folder,
        prompts=prompts_file,
        store=rules.build_expert_maps.output.store,
        trace=rules.profile_models.output.trace,
    output:
        table=ensure(f"{RESULTS}/offloading/{{model}}-{{dataset}}.csv", non_empty=True),
        measured=f"{RESULTS}/offloading/{{model}}-{{dataset}}_measured.csv",
    log:
        notebook=f"{RESULTS}/notebooks/run_offloading/{{model}}-{{dataset}}.ipynb",
        text=f"{RESULTS}/logs/run_offloading/{{model}}-{{dataset}}.txt",
        costs=f"{RESULTS}/costs/run_offloading/{{model}}-{{dataset}}.tsv",
    conda:
        ENVIRONMENT
    threads: workflow.cores
    params:
        values=lambda wildcards, input, output: json.dumps(
            {
                "model": f"{MINIATURES}/{wildcards.model}",
                "store": input.store,
                "trace": input.trace,
                "num_prompts": config["num_prompts"],
                "link": config["link"],
                **dataset_source(wildcards.dataset),
                "policies": config["policies"],
                "expert_memory": config["expert_memory"],
                "prefetch_distance": config["prefetch_distance"][wildcards.model],
                "num_served": config["num_served"],
                "served_tokens": config["served_tokens"],
                "seed": config["seed"],
                "table": output.table,
                "measured": output.measured,
            }
        ),
    shell:
        ALONE + RUN


# The rules below time the engine, so nothing else may run beside them.
rule engine_overhead:
    input:
        notebook="notebooks/studies/engine_overhead.ipynb",
        code=sources_of("engine_overhead"),
        style=STYLE,
        models=expand(f"{MINIATURES}/{{model}}/model.safetensors", model=MODELS),
    output:
        pdf=f"{FIGURES}/engine_overhead_measured.pdf",
        png=in_report("engine_overhead_measured", "engine"),
        csv=ensure(f"{FIGURES}/engine_overhead_measured.csv", non_empty=True),
        rounds=f"{RESULTS}/engine_overhead_measured.csv",
        engine_times=f"{RESULTS}/engine_time_measured.csv",
    log:
        notebook=f"{RESULTS}/notebooks/engine_overhead.ipynb",
        text=f"{RESULTS}/logs/engine_overhead.txt",
        costs=f"{RESULTS}/costs/engine_overhead.tsv",
    conda:
        ENVIRONMENT
    threads: workflow.cores
    params:
        values=lambda wildcards, output: json.dumps(
            {
                "models": [f"{MINIATURES}/{model}" for model in MODELS],
                **dataset_source(DATASETS[0]),
                "num_rounds": config["num_rounds"],
                "interval_width": config["interval_width"],
                "overhead_tokens": config["overhead_tokens"],
                "seed": config["seed"],
                "figure": output.pdf.removesuffix(".pdf"),
                "rounds": output.rounds,
                "engine_times": output.engine_times,
            }
        ),
    shell:
        ALONE + RUN


rule paced_link:
    input:
        notebook="notebooks/studies/paced_link.ipynb",
        code=sources_of("paced_link"),
        style=STYLE,
        models=expand(f"{MINIATURES}/{{model}}/model.safetensors", model=MODELS),
        stores=expand(f"{RESULTS}/stores/{{model}}-{DATASETS[0]}.store", model=MODELS),
    output:
        pdf=f"{FIGURES}/paced_link_measured.pdf",
        png=in_report("paced_link_measured", "engine"),
        csv=ensure(f"{FIGURES}/paced_link_measured.csv", non_empty=True),
        checks=f"{RESULTS}/paced_link_checks_measured.csv",
    log:
        notebook=f"{RESULTS}/notebooks/paced_link.ipynb",
        text=f"{RESULTS}/logs/paced_link.txt",
        costs=f"{RESULTS}/costs/paced_link.tsv",
    conda:
        ENVIRONMENT
    threads: workflow.cores
    params:
        values=lambda wildcards, input, output: json.dumps(
            {
                "models": [f"{MINIATURES}/{model}" for model in MODELS],
                "stores": list(input.stores),
                **dataset_source(DATASETS[0]),
                "prefetch_distances": [config["prefetch_distance"][model] for model in MODELS],
                "num_prompts": config["num_prompts"],
                "paced_load_ms": config["paced_load_ms"],
                "paced_memory": config["paced_memory"],
                "paced_served": config["paced_served"],
                "paced_tokens": config["paced_tokens"],
                "paced_rounds": config["paced_rounds"],
                "num_trials": config["num_trials"],
                "seed": config["seed"],
                "figure": output.pdf.removesuffix(".pdf"),
                "checks": output.checks,
            }
        ),
    shell:
        ALONE + RUN


rule model_geometry:
    input:
        code=sources_of("finemoe.artifact.pipeline.geometries"),
        configs=[str(path) for path in sorted(Path("data/models/configs").glob("*.json"))],
    output:
        ensure(f"{RESULTS}/geometry.csv", non_empty=True),
    log:
        f"{RESULTS}/logs/model_geometry.txt",
    conda:
        ENVIRONMENT
    shell:
        "python -m finemoe.artifact.pipeline.geometries {input.configs} --output {output} > {log} 2>&1"


rule t1:
    input:
        notebook="notebooks/figures/t1.ipynb",
        code=sources_of("t1"),
        style=STYLE,
        geometry=rules.model_geometry.output[0],
    output:
        pdf=f"{FIGURES}/t1.pdf",
        png=in_report("t1", "Table 1"),
        csv=ensure(f"{FIGURES}/t1.csv", non_empty=True),
        claims=f"{RESULTS}/claims/t1.json",
    log:
        notebook=f"{RESULTS}/notebooks/t1.ipynb",
        text=f"{RESULTS}/logs/t1.txt",
        costs=f"{RESULTS}/costs/t1.tsv",
    conda:
        ENVIRONMENT
    params:
        values=lambda wildcards, input, output: json.dumps(
            {"geometry": input.geometry, "figure": f"{FIGURES}/t1", "claims": output.claims}
        ),
    shell:
        RUN


for stem, (artefact, _) in TRACE_FIGURES.items():

    rule:
        name:
            stem
        input:
            notebook=f"notebooks/figures/{stem}.ipynb",
            code=sources_of(stem),
            style=STYLE,
            reference=[
                str(path)
                for pattern in (f"{stem}_*.csv", "compare_systems_*.csv" if stem == "f4" else "")
                for path in sorted(Path("data/reference").glob(pattern or "nothing"))
            ],
            traces=pairs(f"{RESULTS}/traces/{{model}}-{{dataset}}.trace"),
            described=DESCRIBED if stem == "f15" else [],
        output:
            pdf=f"{FIGURES}/{stem}.pdf",
            png=in_report(stem, artefact),
            csv=ensure(f"{FIGURES}/{stem}.csv", non_empty=True),
            claims=f"{RESULTS}/claims/{stem}.json",
        log:
            notebook=f"{RESULTS}/notebooks/{stem}.ipynb",
            text=f"{RESULTS}/logs/{stem}.txt",
            costs=f"{RESULTS}/costs/{stem}.tsv",
        conda:
            ENVIRONMENT
        params:
            values=figure_parameters,
        shell:
            RUN


rule simulate_testbed:
    input:
        notebook="notebooks/stages/4_simulate_testbed.ipynb",
        code=sources_of("simulate_testbed"),
        described=DESCRIBED,
        trace=rules.profile_models.output.trace,
    output:
        table=ensure(f"{RESULTS}/simulated/{{testbed}}/{{model}}-{{dataset}}.csv", non_empty=True),
    log:
        notebook=f"{RESULTS}/notebooks/simulate_testbed/{{testbed}}/{{model}}-{{dataset}}.ipynb",
        text=f"{RESULTS}/logs/simulate_testbed/{{testbed}}/{{model}}-{{dataset}}.txt",
        costs=f"{RESULTS}/costs/simulate_testbed/{{testbed}}/{{model}}-{{dataset}}.tsv",
    conda:
        ENVIRONMENT
    params:
        values=lambda wildcards, input, output: json.dumps(
            {
                "trace": input.trace,
                "testbed": wildcards.testbed,
                "simulated_memories": config["simulated_memories"],
                "cache_limits_gb": (
                    config["cache_limits_gb"] if wildcards.testbed == config["testbed"] else []
                ),
                "prefetch_distance": config["prefetch_distance"][wildcards.model],
                "store_capacity": config["store_capacity"],
                "seed": config["seed"],
                "table": output.table,
            }
        ),
    shell:
        RUN


def testbed_parameters(wildcards, input, output):
    """What the notebook of a figure drawn from simulated tables is told."""
    stem = output.pdf.removesuffix(".pdf")
    id = Path(stem).name
    found = {"tables": list(input.tables), "figure": stem, "claims": output.claims}
    found |= {name: config[name] for name in TESTBED_FIGURES[id][1]}
    of_f13 = {"paper_tables": list(input.compared), "machines": MACHINES}
    return json.dumps(found | (of_f13 if id == "f13" else {}))


for stem, (artefact, _) in TESTBED_FIGURES.items():

    rule:
        name:
            stem
        input:
            notebook=f"notebooks/figures/{stem}.ipynb",
            code=sources_of(stem),
            style=STYLE,
            described=DESCRIBED,
            reference=[] if stem == "f1b" else ["data/reference/simulated_gpt_oss.csv"],
            tables=simulated(config["high_end_testbed" if stem == "f13" else "testbed"]),
            compared=simulated(config["testbed"]) if stem == "f13" else [],
            measured=MEASURED_FILES if stem == "f13" else [],
        output:
            pdf=f"{FIGURES}/{stem}.pdf",
            png=in_report(stem, artefact),
            csv=ensure(f"{FIGURES}/{stem}.csv", non_empty=True),
            claims=f"{RESULTS}/claims/{stem}.json",
        log:
            notebook=f"{RESULTS}/notebooks/{stem}.ipynb",
            text=f"{RESULTS}/logs/{stem}.txt",
            costs=f"{RESULTS}/costs/{stem}.tsv",
        conda:
            ENVIRONMENT
        params:
            values=testbed_parameters,
        shell:
            RUN


rule serve_online:
    input:
        notebook="notebooks/stages/5_serve_online.ipynb",
        code=sources_of("serve_online"),
        described=DESCRIBED,
        arrivals=[config["arrivals_file"]] if config["arrivals_file"] else [],
        trace=lambda wildcards: first_traces([wildcards.model])[0],
        training=lambda wildcards: first_traces([wildcards.model])[1],
    output:
        table=ensure(f"{RESULTS}/online/{{model}}.csv", non_empty=True),
    log:
        notebook=f"{RESULTS}/notebooks/serve_online/{{model}}.ipynb",
        text=f"{RESULTS}/logs/serve_online/{{model}}.txt",
        costs=f"{RESULTS}/costs/serve_online/{{model}}.tsv",
    conda:
        ENVIRONMENT
    params:
        values=lambda wildcards, input, output: json.dumps(
            {
                "trace": input.trace[0],
                "training_trace": input.training[0],
                "prefetch_distance": config["prefetch_distance"][wildcards.model],
                "store_capacity": config["store_capacity"],
                "num_online": config["num_online"],
                "arrivals_file": config["arrivals_file"],
                "table": output.table,
                **{name: config[name] for name in ("testbed", "expert_memory", "online_rate", "seed")},
            }
        ),
    shell:
        RUN


rule f11:
    input:
        notebook="notebooks/figures/f11.ipynb",
        code=sources_of("f11"),
        style=STYLE,
        tables=expand(f"{RESULTS}/online/{{model}}.csv", model=MODELS),
    output:
        pdf=f"{FIGURES}/f11.pdf",
        png=in_report("f11", "Fig. 11"),
        csv=ensure(f"{FIGURES}/f11.csv", non_empty=True),
        claims=f"{RESULTS}/claims/f11.json",
    log:
        notebook=f"{RESULTS}/notebooks/f11.ipynb",
        text=f"{RESULTS}/logs/f11.txt",
        costs=f"{RESULTS}/costs/f11.tsv",
    conda:
        ENVIRONMENT
    params:
        values=lambda wildcards, input, output: json.dumps(
            {
                "tables": list(input.tables),
                "figure": output.pdf.removesuffix(".pdf"),
                "claims": output.claims,
                **{name: config[name] for name in ("testbed", "expert_memory", "online_rate", "seed")},
            }
        ),
    shell:
        RUN


rule f16b:
    input:
        notebook="notebooks/figures/f16b.ipynb",
        code=sources_of("f16b"),
        style=STYLE,
        described=DESCRIBED,
        traces=expand(f"{RESULTS}/traces/{MODELS[0]}-{{dataset}}.trace", dataset=DATASETS),
    output:
        pdf=f"{FIGURES}/f16b.pdf",
        png=in_report("f16b", "Fig. 16b"),
        csv=ensure(f"{FIGURES}/f16b.csv", non_empty=True),
        claims=f"{RESULTS}/claims/f16b.json",
    log:
        notebook=f"{RESULTS}/notebooks/f16b.ipynb",
        text=f"{RESULTS}/logs/f16b.txt",
        costs=f"{RESULTS}/costs/f16b.tsv",
    conda:
        ENVIRONMENT
    params:
        values=lambda wildcards, input, output: json.dumps(
            {
                "traces": list(input.traces),
                "testbed": config["testbed"],
                "expert_memory": config["expert_memory"],
                "simulated_batch_sizes": config["simulated_batch_sizes"],
                "prefetch_distance": config["prefetch_distance"][MODELS[0]],
                "store_capacity": config["store_capacity"],
                "seed": config["seed"],
                "figure": output.pdf.removesuffix(".pdf"),
                "claims": output.claims,
            }
        ),
    shell:
        RUN


# Measures the live engine, so nothing else may run beside it.
rule f17:
    input:
        notebook="notebooks/figures/f17.ipynb",
        code=sources_of("f17"),
        style=STYLE,
        described=DESCRIBED,
        models=expand(f"{MINIATURES}/{{model}}/model.safetensors", model=MODELS),
        traces=first_traces(MODELS)[0],
    output:
        pdf=f"{FIGURES}/f17.pdf",
        png=in_report("f17", "Fig. 17"),
        csv=ensure(f"{FIGURES}/f17.csv", non_empty=True),
        measured=ensure(f"{FIGURES}/f17_measured.csv", non_empty=True),
        claims=f"{RESULTS}/claims/f17.json",
    log:
        notebook=f"{RESULTS}/notebooks/f17.ipynb",
        text=f"{RESULTS}/logs/f17.txt",
        costs=f"{RESULTS}/costs/f17.tsv",
    conda:
        ENVIRONMENT
    threads: workflow.cores
    params:
        values=lambda wildcards, input, output: json.dumps(
            {
                "models": [f"{MINIATURES}/{model}" for model in MODELS],
                "traces": list(input.traces),
                **dataset_source(DATASETS[0]),
                "testbed": config["testbed"],
                "expert_memory": config["expert_memory"],
                "prefetch_distance": config["prefetch_distance"][MODELS[0]],
                "store_capacity": config["store_capacity"],
                "num_prompts": config["num_prompts"],
                "paced_load_ms": config["paced_load_ms"],
                "paced_served": config["paced_served"],
                "paced_tokens": config["paced_tokens"],
                "figure": output.pdf.removesuffix(".pdf"),
                "measured": output.measured,
                "claims": output.claims,
            }
        ),
    shell:
        ALONE + RUN


rule f18:
    input:
        notebook="notebooks/figures/f18.ipynb",
        code=sources_of("f18"),
        style=STYLE,
        described=DESCRIBED,
    output:
        pdf=f"{FIGURES}/f18.pdf",
        png=in_report("f18", "Fig. 18"),
        csv=ensure(f"{FIGURES}/f18.csv", non_empty=True),
        claims=f"{RESULTS}/claims/f18.json",
    log:
        notebook=f"{RESULTS}/notebooks/f18.ipynb",
        text=f"{RESULTS}/logs/f18.txt",
        costs=f"{RESULTS}/costs/f18.tsv",
    conda:
        ENVIRONMENT
    params:
        values=lambda wildcards, output: json.dumps({"figure": f"{FIGURES}/f18", "claims": output.claims}),
    shell:
        RUN


# Measures the live engine, so nothing else may run beside it.
rule validate_simulator:
    input:
        notebook="notebooks/studies/validate_simulator.ipynb",
        code=sources_of("validate_simulator"),
        described=DESCRIBED,
        style=STYLE,
        models=expand(f"{MINIATURES}/{{model}}/model.safetensors", model=MODELS),
        traces=first_traces(MODELS)[0],
        measured=MEASURED_FILES,
    output:
        pdf=f"{FIGURES}/validate_simulator_measured.pdf",
        png=in_report("validate_simulator_measured", "validity"),
        csv=ensure(f"{FIGURES}/validate_simulator_measured.csv", non_empty=True),
        checks=ensure(f"{RESULTS}/validate_simulator_checks.csv", non_empty=True),
    log:
        notebook=f"{RESULTS}/notebooks/validate_simulator.ipynb",
        text=f"{RESULTS}/logs/validate_simulator.txt",
        costs=f"{RESULTS}/costs/validate_simulator.tsv",
    conda:
        ENVIRONMENT
    threads: workflow.cores
    params:
        values=lambda wildcards, input, output: json.dumps(
            {
                "models": [f"{MINIATURES}/{model}" for model in MODELS],
                "traces": list(input.traces),
                **dataset_source(DATASETS[0]),
                "prefetch_distances": [config["prefetch_distance"][model] for model in MODELS],
                "num_prompts": config["num_prompts"],
                "validated_loads_ms": config["validated_loads_ms"],
                "validated_memories": config["validated_memories"],
                "validated_served": config["validated_served"],
                "validated_tokens": config["validated_tokens"],
                "validated_rounds": config["validated_rounds"],
                "num_rounds": config["num_rounds"],
                "store_capacity": config["store_capacity"],
                "figure": output.pdf.removesuffix(".pdf"),
                "checks": output.checks,
                "machines": MACHINES,
            }
        ),
    shell:
        ALONE + RUN


# Measures every part of this machine's runtime at the sizes of the configuration's models; parts that are done are not done again.
rule gpu_bench:
    input:
        code=sources_of("finemoe.artifact.gpu_bench.__main__"),
        models=expand(f"{MINIATURES}/{{model}}/model.safetensors", model=MODELS),
    output:
        f"{HERE}/machine.json",
    log:
        f"{RESULTS}/logs/gpu_bench.txt",
    conda:
        ENVIRONMENT
    threads: workflow.cores
    params:
        folder=lambda wildcards, output: str(Path(output[0]).parent),
        models=" ".join(f"--model {model}" for model in config["gpu_models"]),
    shell:
        "python -m finemoe.artifact.gpu_bench --out {params.folder} {params.models} 2>&1 | tee {log}"


rule gpu_measured:
    input:
        notebook="notebooks/studies/gpu_measured.ipynb",
        code=sources_of("gpu_measured"),
        style=STYLE,
        measured=MEASURED_FILES,
    output:
        pdf=f"{FIGURES}/gpu_measured.pdf",
        png=in_report("gpu_measured", "measured"),
        csv=ensure(f"{FIGURES}/gpu_measured.csv", non_empty=True),
        targets=f"{RESULTS}/gpu_targets.csv",
    log:
        notebook=f"{RESULTS}/notebooks/gpu_measured.ipynb",
        text=f"{RESULTS}/logs/gpu_measured.txt",
        costs=f"{RESULTS}/costs/gpu_measured.tsv",
    conda:
        ENVIRONMENT
    params:
        values=lambda wildcards, output: json.dumps(
            {
                "machines": MACHINES,
                "figure": output.pdf.removesuffix(".pdf"),
                "targets": output.targets,
            }
        ),
    shell:
        RUN


rule scale:
    input:
        notebook="notebooks/studies/scale.ipynb",
        code=sources_of("scale"),
        style=STYLE,
        described=DESCRIBED,
        statistics="data/reference/statistics_gpt_oss.csv",
        recorded="data/traces/qwen-mini-40x32.trace",
        coverage="data/reference/coverage_gpt_oss.csv",
    output:
        pdf=f"{FIGURES}/scale.pdf",
        png=in_report("scale", "scale"),
        csv=ensure(f"{FIGURES}/scale.csv", non_empty=True),
    log:
        notebook=f"{RESULTS}/notebooks/scale.ipynb",
        text=f"{RESULTS}/logs/scale.txt",
        costs=f"{RESULTS}/costs/scale.tsv",
    conda:
        ENVIRONMENT
    params:
        values=lambda wildcards, input, output: json.dumps(
            {
                "scale_testbed": config["scale_testbed"],
                "scale_devices": config["scale_devices"],
                "scale_tokens": config["scale_tokens"],
                "prefetch_distance": config["prefetch_distance"][MODELS[0]],
                "expert_memory": config["expert_memory"],
                "store_capacity": config["store_capacity"],
                "seed": config["seed"],
                "figure": output.pdf.removesuffix(".pdf"),
            }
        ),
    shell:
        RUN


rule compare_systems:
    input:
        notebook="notebooks/tour/2_compare_systems.ipynb",
        code=sources_of("compare_systems"),
        style=STYLE,
        trace=rules.profile_models.output.trace,
    output:
        pdf=f"{FIGURES}/compare_systems/{{model}}-{{dataset}}.pdf",
        png=in_report("compare_systems/{model}-{dataset}", "systems"),
        csv=ensure(f"{FIGURES}/compare_systems/{{model}}-{{dataset}}.csv", non_empty=True),
    log:
        notebook=f"{RESULTS}/notebooks/compare_systems/{{model}}-{{dataset}}.ipynb",
        text=f"{RESULTS}/logs/compare_systems/{{model}}-{{dataset}}.txt",
        costs=f"{RESULTS}/costs/compare_systems/{{model}}-{{dataset}}.tsv",
    conda:
        ENVIRONMENT
    params:
        values=lambda wildcards, input, output: json.dumps(
            {
                "trace": input.trace,
                "expert_memories": config["expert_memories"],
                "prefetch_distance": config["prefetch_distance"][wildcards.model],
                "store_capacity": config["store_capacity"],
                "seed": config["seed"],
                "figure": output.pdf.removesuffix(".pdf"),
            }
        ),
    shell:
        RUN


# Real routing, whose trace is not shipped: the notebook draws the table computed from it.
use rule compare_systems as compare_systems_real with:
    input:
        notebook="notebooks/tour/2_compare_systems.ipynb",
        code=sources_of("compare_systems"),
        style=STYLE,
        known="data/reference/compare_systems_gpt_oss.csv",
    output:
        pdf=f"{FIGURES}/compare_systems/gpt-oss-20b-mixed.pdf",
        png=in_report("compare_systems/gpt-oss-20b-mixed", "systems"),
        csv=ensure(f"{FIGURES}/compare_systems/gpt-oss-20b-mixed.csv", non_empty=True),
    log:
        notebook=f"{RESULTS}/notebooks/compare_systems/gpt-oss-20b-mixed.ipynb",
        text=f"{RESULTS}/logs/compare_systems/gpt-oss-20b-mixed.txt",
        costs=f"{RESULTS}/costs/compare_systems/gpt-oss-20b-mixed.tsv",
    params:
        values=lambda wildcards, input, output: json.dumps(
            {"known": input.known, "figure": output.pdf.removesuffix(".pdf")}
        ),


# Real routing, whose trace is not shipped: the notebook draws the table computed from it.
rule disagreement:
    input:
        notebook="notebooks/studies/disagreement.ipynb",
        code=sources_of("disagreement"),
        style=STYLE,
        known="data/reference/disagreement_gpt_oss.csv",
    output:
        pdf=f"{FIGURES}/disagreement.pdf",
        png=in_report("disagreement", "systems"),
        csv=ensure(f"{FIGURES}/disagreement.csv", non_empty=True),
    log:
        notebook=f"{RESULTS}/notebooks/disagreement.ipynb",
        text=f"{RESULTS}/logs/disagreement.txt",
        costs=f"{RESULTS}/costs/disagreement.tsv",
    conda:
        ENVIRONMENT
    params:
        values=lambda wildcards, input: json.dumps(
            {"known": input.known, "figure": f"{FIGURES}/disagreement"}
        ),
    shell:
        RUN


# From tables that are shipped: what finemoe-plus, which is not in the paper, foretells, evicts and takes.
rule finemoe_plus:
    input:
        notebook="notebooks/studies/finemoe_plus.ipynb",
        code=sources_of("finemoe_plus"),
        style=STYLE,
        described=DESCRIBED,
        forecasts="data/reference/forecasts_gpt_oss.csv",
        calibration="data/reference/calibration_gpt_oss.csv",
        recalls="data/reference/recalls_gpt_oss.csv",
        next_use="data/reference/next_use_gpt_oss.csv",
        margin="data/reference/margin_gpt_oss.csv",
        causal_grid="data/reference/causal_grid.csv",
    output:
        pdf=f"{FIGURES}/finemoe_plus.pdf",
        png=in_report("finemoe_plus", "systems"),
        csv=ensure(f"{FIGURES}/finemoe_plus.csv", non_empty=True),
    log:
        notebook=f"{RESULTS}/notebooks/finemoe_plus.ipynb",
        text=f"{RESULTS}/logs/finemoe_plus.txt",
        costs=f"{RESULTS}/costs/finemoe_plus.tsv",
    conda:
        ENVIRONMENT
    params:
        values=lambda wildcards, input, output: json.dumps(
            {
                "forecasts": input.forecasts,
                "calibration": input.calibration,
                "recalls": input.recalls,
                "next_use": input.next_use,
                "margin": input.margin,
                "causal_grid": input.causal_grid,
                "figure": output.pdf.removesuffix(".pdf"),
            }
        ),
    shell:
        RUN


# Two miniatures replayed here, and real routing from tables, since those traces are not shipped.
rule advise:
    input:
        notebook="notebooks/tour/3_advise.ipynb",
        code=sources_of("advise"),
        style=STYLE,
        described=DESCRIBED,
        traces=expand(f"{RESULTS}/traces/{{model}}-{DATASETS[0]}.trace", model=MODELS[:2]),
        known=ADVISED,
    output:
        pdf=f"{FIGURES}/advise.pdf",
        png=in_report("advise", "systems"),
        csv=ensure(f"{FIGURES}/advise.csv", non_empty=True),
    log:
        notebook=f"{RESULTS}/notebooks/advise.ipynb",
        text=f"{RESULTS}/logs/advise.txt",
        costs=f"{RESULTS}/costs/advise.tsv",
    conda:
        ENVIRONMENT
    params:
        values=lambda wildcards, input, output: json.dumps(
            {
                "traces": list(input.traces),
                "known": str(Path(input.known[0]).parent),
                "hardware": config["advised_testbed"],
                "tokens": config["advised_tokens"],
                "history_tokens": config["advised_history_tokens"],
                "seed": config["seed"],
                "figure": output.pdf.removesuffix(".pdf"),
            }
        ),
    shell:
        RUN


rule training_curves:
    input:
        notebook="notebooks/studies/training_curves.ipynb",
        code=sources_of("training_curves"),
        style=STYLE,
        curves=expand(f"{MINIATURES}/{{model}}/training_curve.csv", model=MODELS),
    output:
        pdf=f"{FIGURES}/training.pdf",
        png=in_report("training", "miniatures"),
        csv=ensure(f"{FIGURES}/training.csv", non_empty=True),
    log:
        notebook=f"{RESULTS}/notebooks/training_curves.ipynb",
        text=f"{RESULTS}/logs/training_curves.txt",
        costs=f"{RESULTS}/costs/training_curves.tsv",
    conda:
        ENVIRONMENT
    params:
        values=lambda wildcards, input: json.dumps(
            {"curves": list(input.curves), "figure": f"{FIGURES}/training"}
        ),
    shell:
        RUN


rule explore:
    input:
        notebook="notebooks/tour/4_explore.ipynb",
        code=sources_of("explore"),
        described=DESCRIBED,
        trace=f"{RESULTS}/traces/{MODELS[0]}-{DATASETS[0]}.trace",
    output:
        f"{RESULTS}/notebooks/explore.ipynb",
    log:
        text=f"{RESULTS}/logs/explore.txt",
        costs=f"{RESULTS}/costs/explore.tsv",
    conda:
        ENVIRONMENT
    params:
        values=lambda wildcards, input: json.dumps(
            {"trace": input.trace, "testbed": config["testbed"], "seed": config["seed"]}
        ),
    shell:
        "python -m finemoe.artifact.pipeline notebook {input.notebook} --output {output} --log {log.text}"
        " --costs {log.costs} --parameters-json {params.values:q}"


rule quickstart:
    input:
        notebook="notebooks/tour/1_quickstart.ipynb",
        code=sources_of("quickstart"),
        style=STYLE,
        model=f"{MINIATURES}/{MODELS[0]}/model.safetensors",
    output:
        pdf=f"{FIGURES}/quickstart.pdf",
        png=in_report("quickstart", "quickstart"),
        csv=ensure(f"{FIGURES}/quickstart.csv", non_empty=True),
    log:
        notebook=f"{RESULTS}/notebooks/quickstart.ipynb",
        text=f"{RESULTS}/logs/quickstart.txt",
        costs=f"{RESULTS}/costs/quickstart.tsv",
    conda:
        ENVIRONMENT
    params:
        values=lambda wildcards, input: json.dumps(
            {
                "model": f"{MINIATURES}/{MODELS[0]}",
                "max_new_tokens": config["served_tokens"],
                "figure": f"{FIGURES}/quickstart",
            }
        ),
    shell:
        RUN


rule claims:
    input:
        notebook="notebooks/figures/claims.ipynb",
        code=sources_of("claims"),
        claims=expand(f"{RESULTS}/claims/{{id}}.json", id=CLAIMED),
        measured=MEASURED_FILES,
    output:
        markdown=f"{FIGURES}/claims.md",
        csv=report(
            ensure(f"{FIGURES}/claims.csv", non_empty=True),
            caption="notebooks/captions/claims.rst",
            category="Claims",
            labels={"table": "the paper's claims"},
        ),
    log:
        notebook=f"{RESULTS}/notebooks/claims.ipynb",
        text=f"{RESULTS}/logs/claims.txt",
        costs=f"{RESULTS}/costs/claims.tsv",
    conda:
        ENVIRONMENT
    params:
        values=lambda wildcards, input, output: json.dumps(
            {
                "claims": list(input.claims),
                "machines": MACHINES,
                "markdown": output.markdown,
                "csv": output.csv,
            }
        ),
    shell:
        RUN


# Not part of the default target: the trained miniatures are shipped. To use these instead, set `miniatures` in the config.
rule train_miniatures:
    input:
        expand("results/miniatures/{model}/model.safetensors", model=MODELS),


rule train_miniature:
    input:
        code=sources_of("finemoe.artifact.miniatures.training"),
    output:
        [
            f"results/miniatures/{{model}}/{name}"
            for name in ("config.json", "model.safetensors", "tokenizer.json", "training_curve.csv")
        ],
    log:
        "results/logs/train_miniature/{model}.txt",
    conda:
        ENVIRONMENT
    threads: workflow.cores
    shell:
        "python -m finemoe.artifact.miniatures.training {wildcards.model} --output results/miniatures/{wildcards.model} > {log} 2>&1"
