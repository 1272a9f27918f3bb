"""COCO panoptic, first stage: boxes of things and stuff."""

from downstream.export.detectron2.lazy import configuration

globals().update(
    configuration(
        "panoptic/r50-boxes",
        train=["coco_2017_train_panoptic_separated"],
        test="coco_2017_val_panoptic_separated",
        images=118287,
    )
)
