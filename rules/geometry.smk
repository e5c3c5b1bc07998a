# Parameters, experts and layers of the published models, from their configurations alone.
rule model_geometry:
    input:
        code=sources_of("finemoe.artifact.pipeline.geometries"),
        configs=FILLING.paths("data/models/configs/*.json"),
    output:
        ensure(f"{RESULTS}/geometry.csv", non_empty=True),
    log:
        f"{RESULTS}/logs/model_geometry.txt",
    conda:
        "../environment.yml"
    shell:
        "python -m finemoe.artifact.pipeline.geometries {input.configs} --output {output} > {log} 2>&1"
