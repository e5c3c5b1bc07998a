# Measures every part of this machine's runtime at the sizes of the configured models; resumable: finished parts are kept.
rule gpu_bench:
    input:
        code=sources_of("finemoe.artifact.gpu_bench.__main__"),
        models=FILLING.paths("{miniatures}/{MODELS}/model.safetensors"),
    output:
        f"{HERE}/machine.json",
    log:
        f"{RESULTS}/logs/gpu_bench.txt",
    conda:
        "../environment.yml"
    threads: workflow.cores
    params:
        folder=lambda wildcards, output: str(Path(output[0]).parent),
        models=" ".join(f"--model {model}" for model in config["gpu_models"]),
    shell:
        "python -m finemoe.artifact.gpu_bench --out {params.folder} {params.models} 2>&1 | tee {log}"
