# Not part of the default target, because the trained miniatures are shipped. To use newly trained ones, set `miniatures: results/miniatures`.
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
        "../environment.yml"
    threads: workflow.cores
    shell:
        "python -m finemoe.artifact.miniatures.training {wildcards.model} --output results/miniatures/{wildcards.model} > {log} 2>&1"
