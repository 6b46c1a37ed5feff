"""What only the repository itself has: RESULTS.md where it is shown. No rule of a module."""


rule publish:
    """Copy RESULTS.md and its figures to where the repository shows them, without links to the page, which stays."""
    input:
        "<results>/RESULTS.md",
    output:
        results="RESULTS.md",
        figures=directory("docs/figures"),
    log:
        "<logs>/report/publish.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    params:
        figures=f"{study.results}/figures",
    shell:
        "(cp -R {params.figures:q} {output.figures:q} && "
        "sed -E -f workflow/templates/publish.sed {input:q} > {output.results:q}) > {log:q} 2>&1"
