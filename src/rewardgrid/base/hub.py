from rewardgrid.base.corpus import Stories


def fetch_hub(recipe, directory) -> Stories:
    raise NotImplementedError
