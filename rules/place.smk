"""Where this is read: in a checkout or from a git host, as a workflow of its own or as another one's module."""

# A checkout has the library beside the rules. Whatever fetches rules from elsewhere fetches rules alone.
HERE = os.path.dirname(str(workflow.current_basedir))
LIBRARY = [path for path in [os.path.join(HERE, "src")] if os.path.isdir(path)]
sys.path[:0] = LIBRARY
try:
    import rewardgrid.study
except ImportError:
    raise WorkflowError(
        f"rewardgrid: the rules come from {HERE}, and the library does not come with them; install it where snakemake "
        "runs, of the same version: pip install 'rewardgrid[all] @ git+<the repository's address>@<the same tag>'"
    ) from None

from rewardgrid.study.targets import asked_for

# Configuration and targets of a module are another workflow's.
ALONE = workflow.modifier.is_main_snakefile()
if ALONE:
    if not os.path.exists("config/config.yaml"):
        raise WorkflowError("There is no config/config.yaml here: run it in the repository's directory.")

    configfile: "config/config.yaml"


files = ["config/config.yaml", *workflow.overwrite_configfiles] if ALONE else []
config_files = [os.path.relpath(path) for path in files]
targets = asked_for(sys.argv) if ALONE else []
