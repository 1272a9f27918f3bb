"""COCO panoptic, second stage: masks on top of the first, which is `train.init_checkpoint`."""

from downstream.export.detectron2.lazy import configuration

globals().update(
    configuration(
        "panoptic/r50",
        train=["coco_2017_train_panoptic_separated"],
        test="coco_2017_val_panoptic_separated",
        images=118287,
    )
)
