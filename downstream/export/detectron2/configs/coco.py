"""COCO 2017."""

from downstream.export.detectron2.lazy import configuration

globals().update(configuration("detection/r50", train=["coco_2017_train"], test="coco_2017_val", images=118287))
