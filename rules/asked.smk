"""The last to be read: whether some rule makes what is asked for."""

from rewardgrid.study.targets import check_made

if workflow.is_main_process and ALONE:
    try:
        check_made(targets, {rule.name: rule.is_producer for rule in workflow.rules})
    except UserError as error:
        raise WorkflowError(str(error)) from None
