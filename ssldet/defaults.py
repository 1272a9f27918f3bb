"""Defaults for users who name no task or recipe: the only names of registered ones that the core knows."""

PRETRAIN_LARGE, PRETRAIN_SMALL = "random_query_patch/r50", "random_query_patch/small"
"""Recipes of `ssldet pretrain` at full scale, and for two CPU cores or few images."""
FINETUNE_LARGE, FINETUNE_SMALL = "detection/r50", "detection/small"
"""Recipes of `ssldet finetune`, likewise."""
SMALL = (PRETRAIN_SMALL, FINETUNE_SMALL, "one_shot/small", "self_training/small")
"""Recipes whose backbone has learned from photographs, and which two CPU cores train in half an hour; one a task."""
BACKBONE_OF_SMALL = "detector.backbone.name=timm/tf_efficientnet_lite0 detector.backbone.weights=imagenet"
"""The fields that take their backbone for a task without such a recipe."""
PREVIEW = "random_query_patch"
"""Task of `ssldet preview`."""
SHOWN = "random_query_patch/tiny", "detection/tiny"
"""Recipes of both stages of `ssldet demo`."""
