"""Bases: language models that are made here, or brought in from elsewhere."""


rule base:
    """Make an embedded base: write its stories, train its tokenizer, pretrain it."""
    output:
        model=directory("<results>/base/{base}/model"),
        train_prompts="<results>/base/{base}/train_prompts.parquet",
        eval_prompts="<results>/base/{base}/eval_prompts.parquet",
        provenance="<results>/base/{base}/provenance.json",
    log:
        "<logs>/base/{base}.log",
    benchmark:
        "<benchmarks>/base/{base}.tsv"
    wildcard_constraints:
        base=bases_of("embedded"),
    conda:
        "../envs/base.yaml"
    threads: 2
    resources:
        mem_mb=lambda wc, attempt: 2000 * attempt,
        runtime=lambda wc, attempt: 30 * attempt,
    params:
        name=lambda wc: recipe_of(wc)[0],
        recipe=lambda wc: recipe_of(wc)[1].model_dump_json(),
    shell:
        "OMP_NUM_THREADS={threads} python workflow/scripts/base.py --name {params.name:q} "
        '--recipe {params.recipe:q} --out "$(dirname {output.model:q})" > {log:q} 2>&1'


# A base from the hub or from a directory. This is the one job that may need the network, and the nodes of a
# cluster often have none: it runs where Snakemake runs.
use rule base as base_import with:
    wildcard_constraints:
        base=bases_of("hub", "local", "packaged"),
    localrule: True
    threads: 1
