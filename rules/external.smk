# External data, fetched on request: `snakemake --cores 1 external`. data/external.yaml lists them; what figures need of them is fetched first.
rule external:
    input:
        [in_folder(entry.result) for entry in EXTERNAL.values() if can_be_had(entry)],
    log:
        f"{RESULTS}/logs/external.txt",
    conda:
        "../environment.yml"
    params:
        folder=config["external"],
    shell:
        "python -m finemoe.artifact.external summary --folder {params.folder} 2>&1 | tee {log}"


for entry in [entry for entry in EXTERNAL.values() if entry.file]:

    rule:
        name:
            f"fetch_{entry.name.replace('-', '_')}"
        output:
            in_folder(entry.file),
        log:
            f"{RESULTS}/logs/fetch_{entry.name}.txt",
        conda:
            "../environment.yml"
        params:
            name=entry.name,
            folder=above(entry.file),
            sha256=entry.sha256,  # another file is fetched again
        shell:
            "python -m finemoe.artifact.external fetch {params.name} --folder {params.folder} 2>&1 | tee {log}"


for entry in [entry for entry in EXTERNAL.values() if entry.converted]:

    rule:
        name:
            f"convert_{entry.name.replace('-', '_')}"
        input:
            # What only the hub has is not read again because the code changed.
            code=sources_of(f"finemoe.artifact.external.{entry.converter}") if entry.file else [],
            published=[in_folder(entry.file)] if entry.file else [],
        output:
            in_folder(entry.converted),
        log:
            f"{RESULTS}/logs/convert_{entry.name}.txt",
        conda:
            "../environment.yml"
        params:
            name=entry.name,
            folder=above(entry.converted),
        shell:
            "python -m finemoe.artifact.external convert {params.name} --folder {params.folder} 2>&1 | tee {log}"


# The tables behind the panels on real routing, which are shipped; `routing_tables` computes them again.
rule gpt_oss_tables:
    input:
        code=sources_of("finemoe.artifact.analysis.gpt_oss"),
        described=FILLING.paths(
            ["data/hardware/*.yaml", "data/models/configs/*.json", "data/models/sizes.json"]
        ),
        trace=in_folder(EXTERNAL["gpt-oss-20b"].result),
    output:
        [f"{RESULTS}/{path.removeprefix('data/')}" for path in SHIPPED_TABLES["gpt-oss-20b"]],
    log:
        f"{RESULTS}/logs/gpt_oss_tables.txt",
    conda:
        "../environment.yml"
    params:
        capacity=config["store_capacity"],
        folder=lambda wildcards, output: str(Path(output[0]).parent),
    shell:
        "python -m finemoe.artifact.analysis.gpt_oss {input.trace} --folder {params.folder}"
        " --store-capacity {params.capacity} > {log} 2>&1"


rule mixtral_tables:
    input:
        code=sources_of("finemoe.artifact.analysis.mixtral"),
        arrays=in_folder(EXTERNAL["mixtral-mmlu"].result),
        questions=in_folder(EXTERNAL["mixtral-mmlu-questions"].result),
    output:
        [f"{RESULTS}/{path.removeprefix('data/')}" for path in SHIPPED_TABLES["mixtral-8x7b"]],
    log:
        f"{RESULTS}/logs/mixtral_tables.txt",
    conda:
        "../environment.yml"
    params:
        data=lambda wildcards, input: str(Path(input.arrays).parent),
        folder=lambda wildcards, output: str(Path(output[0]).parent),
        sentences=config["sentence_model"],
    shell:
        "python -m finemoe.artifact.analysis.mixtral {params.data} --output {params.folder}"
        " --sentence-model '{params.sentences}' > {log} 2>&1"
