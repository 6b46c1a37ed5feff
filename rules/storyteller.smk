"""The storytellers anew: a teacher's stories, sifted, and bases pretrained on them. Not part of `all`.

The bases that come with rewardgrid (resources/bases) were made so. To use another one, name its directory in the
configuration: `bases: {storyteller: {kind: packaged, path: results/storyteller/bases/storyteller}}`.
"""


rule storyteller:
    """Make the storyteller bases from their teacher's stories."""
    input:
        expand(
            "<results>/storyteller/bases/{storyteller}/provenance.json",
            storyteller=study.storyteller.bases,
        ),


# This is the one job here that may need the network, and the nodes of a cluster often have none.
rule teacher:
    """Check the teacher, after a download if it is a hub's."""
    output:
        "<results>/storyteller/teacher/{teacher}/teacher.json",
    log:
        "<logs>/storyteller/teacher-{teacher}.log",
    localrule: True
    conda:
        "../envs/storyteller.yaml"
    params:
        recipe=study.storyteller.model_dump_json(include={"teacher"}),
    shell:
        'python -P -m rewardgrid.programs teacher --recipe {params.recipe:q} --out "$(dirname {output:q})" > {log:q} 2>&1'


rule tell:
    """Let the teacher tell a shard of stories. The path says which teacher, and which stories."""
    input:
        needs_of_untold,
    output:
        "<results>/storyteller/told/{teacher}-{stories}/{seed}-{shard}.parquet",
    log:
        "<logs>/storyteller/tell-{teacher}-{stories}-{seed}-{shard}.log",
    wildcard_constraints:
        teacher="[0-9a-f]{10}",
        stories="[0-9]+",
        seed="[0-9]+",
        shard="[0-9]+",
    conda:
        "../envs/storyteller.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: 8000 * attempt,
        runtime=lambda wc, attempt: 60 * attempt,
    params:
        teacher=lambda wc: str(study.layout.teacher(wc.teacher)),
    shell:
        "OMP_NUM_THREADS={threads} HF_HUB_OFFLINE=1 python -P -m rewardgrid.programs tell --teacher {params.teacher:q} "
        "--seed {wildcards.seed} --shard {wildcards.shard} --stories {wildcards.stories} --out {output:q} "
        "> {log:q} 2>&1"


rule stories:
    """All stories that the storyteller is made of."""
    input:
        shards_of_stories,


rule sift:
    """Sift the stories, and count what each sieve holds back."""
    input:
        shards_of_stories,
    output:
        "<results>/storyteller/sifted.parquet",
    log:
        "<logs>/storyteller/sift.log",
    conda:
        "../envs/storyteller.yaml"
    shell:
        "python -P -m rewardgrid.programs storyteller sift --told {input:q} --out {output:q} > {log:q} 2>&1"


rule make_storyteller:
    """Learn a tokenizer from the sifted stories, pretrain on them, cut the prompts."""
    input:
        rules.sift.output,
    output:
        model=directory("<results>/storyteller/bases/{storyteller}/model"),
        train_prompts="<results>/storyteller/bases/{storyteller}/train_prompts.parquet",
        eval_prompts="<results>/storyteller/bases/{storyteller}/eval_prompts.parquet",
        provenance="<results>/storyteller/bases/{storyteller}/provenance.json",
    log:
        "<logs>/storyteller/make-{storyteller}.log",
    wildcard_constraints:
        storyteller="|".join(study.storyteller.bases),
    conda:
        "../envs/storyteller.yaml"
    threads: 2
    resources:
        mem_mb=lambda wc, attempt: 4000 * attempt,
        runtime=lambda wc, attempt: 120 * attempt,
    params:
        recipe=study.storyteller.model_dump_json(),
    shell:
        "OMP_NUM_THREADS={threads} python -P -m rewardgrid.programs storyteller make --sifted {input:q} "
        '--base {wildcards.storyteller:q} --recipe {params.recipe:q} --out "$(dirname {output.model:q})" > {log:q} 2>&1'
