# Every figure and table of the paper that this project regenerates: `snakemake --cores all`.
# notebooks/table.yaml lists the notebooks and their files; one generic rule below runs each of them. Settings are in config/, and the
# logic is in the package. rules/ contains everything that is not a notebook: model geometries, GPU measurements, training of the miniatures.
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.settings.enums import Quietness
from snakemake.utils import min_version

from finemoe.errors import FinemoeError
from finemoe.artifact.pipeline.config import check
from finemoe.artifact.pipeline.progress import Progress
from finemoe.artifact.pipeline.warm_parent import Nursery

min_version("9.5")


# Rules run the Python interpreter of Snakemake and the package of this checkout, whether or not either is activated or installed.
for variable, first in (("PATH", Path(sys.executable).parent), ("PYTHONPATH", workflow.basedir)):
    os.environ[variable] = os.pathsep.join([str(first), os.environ.get(variable, "")]).rstrip(os.pathsep)


workdir: workflow.basedir


report: "notebooks/captions/report.rst"


configfile: "config/default.yaml"


try:
    check(config)
except FinemoeError as error:
    raise WorkflowError(str(error)) from None


include: "rules/common.smk"


wildcard_constraints:
    **{name: "|".join(values) for name, values in EVERY.items()},


# Most notebooks run in forks of one process that has imported their libraries.
nursery = Nursery()


onstart:
    if workflow.local_exec:
        # Snakemake 9.27 starts another timer for every job that ends. Each timer makes it check every file of every waiting job once a
        # second, which costs a sixth of all processor time. The timers implement a limit of jobs per second, which only a cluster needs.
        workflow.scheduler.job_rate_limiter = None
    jobs = [(job.rule.name, job.threads) for job in workflow.dag.needrun_jobs() if job.rule.name != "all"]
    logger.addFilter(Progress(jobs, workflow.cores, Quietness.RULES))
    nursery.start()


onerror:
    nursery.stop()


onsuccess:
    nursery.stop()
    has_figures = Path(f"{FIGURES}/claims.md").is_file()  # not after a target such as `external`
    if has_figures and not workflow.dryrun:
        print(
            f"Figures are in {FIGURES}/, the claims they bear on in {FIGURES}/claims.md.", file=sys.stderr
        )


rule all:
    default_target: True
    input:
        [
            expand(path, **{name: EVERY[name] for name in entry.each})
            for entry in TABLE.values()
            for path in FILLING.outputs(entry).values()
        ],


# Snakemake evaluates `shell` when a job runs, after this loop: what differs between the entries must be a parameter.
for entry in TABLE.values():

    rule:
        name:
            entry.name
        input:
            **inputs_of(entry),
        output:
            **outputs_of(entry),
        log:
            **logs_of(entry),
        conda:
            "environment.yml"  # created only with `--software-deployment-method conda`
        threads: workflow.cores if entry.alone else 1
        params:
            environment=environment_of(entry),
            executed=executed_of(entry),
            values=values_of(entry),
        shell:
            RUN


include: "rules/external.smk"
include: "rules/geometry.smk"
include: "rules/gpu.smk"
include: "rules/miniatures.smk"
